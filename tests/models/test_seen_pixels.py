"""What a family says that it sees of a page, beside what its tower is fed: nothing more, and little less."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from models.deepseek_ocr import images as deepseek_images
from models.deepseek_ocr.family import DeepseekOcr
from models.deepseek_ocr2 import images as deepseek2_images
from models.deepseek_ocr2.family import DeepseekOcr2
from models.dots_ocr import images as dots_images
from models.dots_ocr.family import DotsOcr
from models.glm_ocr import images as glm_images
from models.glm_ocr.family import GlmOcr
from models.lighton_ocr import images as lighton_images
from models.lighton_ocr.family import LightOnOcr
from models.paddleocr_vl import images as paddle_images
from models.paddleocr_vl.family import PaddleOcrVl
from models.paddleocr_vl.output import SPOTTING
from runtime.documents import enough_pixels

VIEWS: dict[str, Any] = {"patch_size": 16, "downsample": 4, "grid": 64}
PATCHES: dict[str, Any] = {"patch_size": 14, "merge_size": 2, "head_dim": 64}
DEEPSEEK = (DeepseekOcr, deepseek_images.ImageRules(**VIEWS, clip_grid=16))
DEEPSEEK_2 = (DeepseekOcr2, deepseek2_images.ImageRules(**VIEWS, base_size=1024, image_size=768))
DOTS = (DotsOcr, dots_images.ImageRules(**PATCHES))
GLM = (GlmOcr, glm_images.ImageRules(**PATCHES))
LIGHTON = (LightOnOcr, lighton_images.ImageRules(**PATCHES, longest_edge=1540))
PADDLE = (PaddleOcrVl, paddle_images.ImageRules(**PATCHES, min_pixels=147_384, max_pixels=1_003_520, grid=27))

SAID = [
    (DEEPSEEK, {}, 9 * 640**2),
    (DEEPSEEK, {"max_tiles": 2}, 1024**2),
    (DEEPSEEK, {"crop_mode": False}, 640**2),
    (DEEPSEEK_2, {}, 6 * 768**2),
    (DOTS, {}, 2_007_040),
    (DOTS, {"max_pixels": 400_000}, 400_000),
    (GLM, {}, 2_007_040),
    (GLM, {"max_pixels": 4_000_000}, 4_000_000),
    (LIGHTON, {}, 1540**2),
    (LIGHTON, {"max_pixels": 500_000}, 500_000),
    (PADDLE, {}, 1_003_520),
    (PADDLE, {"max_pixels": 300_000}, 300_000),
]


def bound(model: tuple[Any, Any]) -> Any:
    """A family with its rules, and nothing else of an exported model."""
    family = object.__new__(model[0])
    family.rules, family.most_tokens, family.tokens = model[1], None, SimpleNamespace()
    return family


def fed(family: Any, page: Image.Image, settings: dict[str, Any]) -> int:
    """Pixels of the tiles or of the one view of a page, whichever are more."""
    areas = [make()["pixel_values"].size // 3 for make in family.prepare_image(page, settings).passes]
    return int(max(sum(areas[:-1]), areas[-1]))


@pytest.mark.parametrize(("model", "settings", "pixels"), SAID)
def test_a_family_sees_what_its_tower_is_fed_of_a_large_page(
    model: tuple[Any, Any], settings: dict[str, Any], pixels: int
) -> None:
    family = bound(model)
    assert family.seen_pixels(settings) == pixels
    most = max(fed(family, Image.new("RGB", size), settings) for size in ((2400, 2400), (3000, 2000)))
    assert 0.6 * pixels < most <= pixels


def test_text_is_spotted_in_a_larger_picture_than_it_is_read_from() -> None:
    family = bound(PADDLE)
    assert family.seen_pixels({}, SPOTTING) == 1_605_632
    # A page that is drawn at so many pixels is never so small that it would be doubled before it is looked at.
    assert enough_pixels(family.seen_pixels({}, SPOTTING)) ** 0.5 > 1500


@pytest.mark.parametrize("model", [DEEPSEEK, DEEPSEEK_2])
def test_a_page_is_cut_alike_when_it_is_drawn_at_twice_what_is_seen(model: tuple[Any, Any]) -> None:
    family = bound(model)
    shown = enough_pixels(family.seen_pixels({}))
    tiles = model[1].image_size
    for across, down in ((210, 297), (297, 210), (1, 1), (2, 3), (1, 3), (216, 279)):
        grids = set()
        for area in (shown, 12_000_000):
            scale = (area / (across * down)) ** 0.5
            size = int(across * scale), int(down * scale)
            grids.add(deepseek_images.choose_grid(*size, tiles, model[1].max_tiles))
        assert len(grids) == 1, (across, down)
