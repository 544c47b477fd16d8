"""The image rules of GLM-OCR, dots.ocr and LightOnOCR against transformers' own: sizes identical, pixels alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.dots_ocr import images as dots
from models.glm_ocr import images as glm
from models.lighton_ocr import images as lighton
from models.model_errors import InvalidInput
from models.patches import CLIP_MEAN, CLIP_STD, PatchRules, limited, normalise, one_page, page_inputs, resize

GLM = glm.ImageRules(patch_size=14, merge_size=2, head_dim=64)
DOTS = dots.ImageRules(patch_size=14, merge_size=2, head_dim=128)
LIGHTON = lighton.ImageRules(patch_size=14, merge_size=2, head_dim=64, longest_edge=1540)
RULES: dict[str, tuple[PatchRules, Callable[[int, int, Any], tuple[int, int]]]] = {
    "glm-ocr": (GLM, glm.resized_size), "dots-ocr": (DOTS, dots.resized_size),
    "lighton-ocr": (LIGHTON, lighton.resized_size),
}  # fmt: skip
CLIP = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}


def processor(family: str) -> Any:
    """transformers' own on Pillow, with the published settings."""
    if family == "glm-ocr":
        library = pytest.importorskip("transformers.models.glm46v.image_processing_pil_glm46v")
        size = {"shortest_edge": 12_544, "longest_edge": 9_633_792}
        return library.Glm46VImageProcessorPil(size=size, patch_size=14, temporal_patch_size=2, merge_size=2, **CLIP)
    if family == "dots-ocr":
        library = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
        return library.Qwen2VLImageProcessorPil(
            min_pixels=3_136, max_pixels=11_289_600, patch_size=14, temporal_patch_size=1, merge_size=2, **CLIP
        )
    library = pytest.importorskip("transformers.models.pixtral.image_processing_pil_pixtral")
    return library.PixtralImageProcessorPil(size={"longest_edge": 1540}, patch_size=14, **CLIP)


def published_size(family: str, width: int, height: int) -> tuple[int, int]:
    if family == "glm-ocr":
        library = pytest.importorskip("transformers.models.glm46v.image_processing_pil_glm46v")
        rows, columns = library.smart_resize(2, height, width, 2, 28, 12_544, 9_633_792)
    elif family == "dots-ocr":
        library = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
        rows, columns = library.smart_resize(height, width, 28, 3_136, 11_289_600)
    else:
        library = pytest.importorskip("transformers.models.pixtral.image_processing_pil_pixtral")
        picture = np.empty((3, height, width), np.bool_)
        rows, columns = library.get_resize_output_image_size(picture, 1540, 14, "channels_first")
    return columns, rows


def expected(family: str, image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
    """The library's pixels as [1, 3, height, width], and the patches (rows, columns)."""
    prepared = processor(family)(image, return_tensors="np")
    if family == "lighton-ocr":
        pixels = np.asarray(prepared["pixel_values"])
        return pixels, (pixels.shape[2] // 14, pixels.shape[3] // 14)
    rows, columns = prepared["image_grid_thw"][0][1:].tolist()
    frames = 2 if family == "glm-ocr" else 1
    blocks = prepared["pixel_values"].reshape(rows // 2, columns // 2, 2, 2, 3, frames, 14, 14)
    assert (blocks[..., 0, :, :] == blocks[..., -1, :, :]).all()  # every frame is the same picture
    picture = blocks[:, :, :, :, :, 0].transpose(4, 0, 2, 5, 1, 3, 6)
    return picture.reshape(1, 3, rows * 14, columns * 14), (rows, columns)


def random_sizes(count: int, least: int = 1, largest: int = 6000) -> list[tuple[int, int]]:
    """Sides in pixels, as often small as large, with at most 1:200 between them."""
    rng = np.random.default_rng(19)
    sizes: list[tuple[int, int]] = []
    while len(sizes) < count:
        width, height = (round(math.exp(side)) for side in rng.uniform(math.log(least), math.log(largest), 2))
        if max(width, height) <= 200 * min(width, height):
            sizes.append((width, height))
    return sizes


EXTREME = [(28, 5600), (5600, 28), (200, 1), (1, 200), (13, 2600), (27, 27), (14, 14), (1, 1), (10, 12), (15, 3000)]
PAGES = [(1654, 2339), (2480, 3508), (1191, 1684), (6000, 4000), (4000, 3000), (1700, 2200), (1000, 1300), (1000, 2000)]


@pytest.mark.parametrize("family", RULES)
def test_two_hundred_random_tiny_and_extreme_sizes_are_resized_as_published(family) -> None:
    rules, sized = RULES[family]
    ours: Callable[[int, int, Any], tuple[int, int]] = lighton.published_size if family == "lighton-ocr" else sized
    for width, height in [*random_sizes(200), *EXTREME, *PAGES]:
        assert ours(width, height, rules) == published_size(family, width, height), (width, height)


@pytest.mark.parametrize("family", ["glm-ocr", "dots-ocr"])
def test_sides_of_1_to_60_pixels_are_resized_as_published(family) -> None:
    rules, sized = RULES[family]
    for width in range(1, 61):
        for height in range(1, 61):
            assert sized(width, height, rules) == published_size(family, width, height), (width, height)


@pytest.mark.parametrize("family", RULES)
def test_two_hundred_random_tiny_and_extreme_images_have_the_published_pixels(family) -> None:
    """Up to 1,200 pixels a side, to compare all of them in seconds."""
    rules, sized = RULES[family]
    least = 15 if family == "lighton-ocr" else 1  # a smaller picture has no block of it
    extreme = [size for size in EXTREME if least <= min(size) and max(size) <= 2600]
    for seed, size in enumerate([*random_sizes(200, least, 1200), *extreme]):
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        pixels = normalise(resize(Image.fromarray(noise), rules, sized), rules)
        theirs, grid = expected(family, Image.fromarray(noise))
        assert (pixels.shape[2] // 14, pixels.shape[3] // 14) == grid
        assert np.abs(pixels - theirs).max() < 1e-6, size


GRIDS = {
    "glm-ocr": {(6000, 4000): (128, 192), (4000, 3000): (134, 180), (1700, 2200): (158, 122), (20, 300): (30, 2),
                (1654, 2339): (168, 118), (100, 100): (8, 8), (1000, 1300): (92, 72)},
    "dots-ocr": {(1654, 2339): (168, 118), (2480, 3508): (250, 178), (1191, 1684): (120, 86), (6000, 4000): (194, 292),
                 (20, 300): (22, 2), (10, 12): (6, 4), (100, 100): (8, 8)},
    "lighton-ocr": {(1654, 2339): (110, 78), (2480, 3508): (110, 78), (6000, 4000): (74, 110), (1000, 1300): (93, 72),
                    (1000, 2000): (110, 55), (100, 100): (8, 8)},
}  # fmt: skip


@pytest.mark.parametrize("family", RULES)
def test_pages_get_the_patches_that_the_publishers_code_gives_them(family) -> None:
    rules, sized = RULES[family]
    for size, (rows, columns) in GRIDS[family].items():
        assert sized(*size, rules) == (columns * 14, rows * 14), size


@pytest.mark.parametrize("family", RULES)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_transparency_is_laid_over_white(family, mode) -> None:
    rules, sized = RULES[family]
    clear = Image.new("RGBA", (56, 56), (0, 0, 0, 0))
    image = clear if mode == "RGBA" else clear.convert(mode)
    pixels = resize(image, rules, sized)
    assert (pixels == (0 if mode == "L" else 255)).all()  # a grey picture has no transparency left


@pytest.mark.parametrize("family", RULES)
def test_half_transparent_pictures_are_composited_as_published(family) -> None:
    rules, sized = RULES[family]
    values = np.random.default_rng(3).integers(0, 256, (56, 84, 4), np.uint8)
    theirs, _ = expected(family, Image.fromarray(values))
    assert np.abs(normalise(resize(Image.fromarray(values), rules, sized), rules) - theirs).max() < 1e-6


@pytest.mark.parametrize("family", RULES)
def test_a_turned_photograph_is_set_upright_before_its_size_is_chosen(family) -> None:
    rules, sized = RULES[family]
    image = Image.effect_noise((600, 300), 90)
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.info["exif"] = exif.tobytes()
    upright = resize(image, rules, sized)
    assert upright.shape[0] > upright.shape[1]


@pytest.mark.parametrize("family", ["glm-ocr", "dots-ocr"])
@pytest.mark.parametrize("size", [(28, 5601), (6000, 29), (1, 201), (10_000, 49)])
def test_a_narrower_picture_than_1_to_200_is_refused_with_its_size_and_the_limit(family, size) -> None:
    rules, sized = RULES[family]
    with pytest.raises(InvalidInput, match=rf"{size[0]} x {size[1]}.*200 times"):
        sized(*size, rules)


@pytest.mark.parametrize("size", [(10, 300), (14, 14), (1, 1), (6000, 40), (20_000, 3)])
def test_a_picture_without_a_whole_block_is_refused_by_lighton_with_the_remedy(size) -> None:
    with pytest.raises(InvalidInput, match=rf"{size[0]} x {size[1]}, of which.*blocks of 28 pixels: enlarge"):
        lighton.resized_size(*size, LIGHTON)


@pytest.mark.parametrize("family", RULES)
def test_an_empty_picture_is_refused(family) -> None:
    rules, sized = RULES[family]
    with pytest.raises(InvalidInput, match="0 x 5"):
        resize(Image.new("RGB", (0, 5)), rules, sized)


@pytest.mark.parametrize(("rules", "settings", "most"), [(GLM, glm, glm.MAX_PIXELS), (DOTS, dots, dots.MAX_PIXELS)])
def test_the_default_limit_is_what_a_cpu_bears_and_gives_way_to_what_is_set(rules, settings, most) -> None:
    area = lambda **given: math.prod(settings.resized_size(
        2480, 3508, limited(rules, settings.ImageSettings(**given), most)
    ))  # fmt: skip
    assert most * 0.95 < area() <= most
    assert area(max_pixels=settings.PUBLISHED_MAX_PIXELS) > 2 * most
    assert area(max_pixels=500_000) <= 500_000
    assert area(min_pixels=3_000_000) >= 3_000_000 * 0.95
    with pytest.raises(InvalidInput, match="min_pixels is 3000 and max_pixels 2000"):
        area(min_pixels=3000, max_pixels=2000)


def test_lighton_reduces_further_where_a_limit_is_set() -> None:
    width, height = lighton.resized_size(1654, 2339, LIGHTON.model_copy(update={"max_pixels": 1_000_000}))
    assert 900_000 < width * height <= 1_000_000
    assert abs(height / width - 2339 / 1654) < 0.05
    assert lighton.resized_size(300, 200, LIGHTON.model_copy(update={"max_pixels": 1_000_000})) == (308, 210)


def test_each_patch_is_turned_by_its_row_and_its_column() -> None:
    """Pixtral's columns turn by the frequencies between those of its rows, the others' by the same ones."""
    for rules in (GLM, DOTS, LIGHTON):
        inputs, half = page_inputs(4, 6, rules), rules.head_dim // 2
        cos, sin = (inputs[name].reshape(4, 6, half) for name in ("rotary_cos", "rotary_sin"))
        steps = np.arange(half // 2) * 2
        by_row = 10_000.0 ** -(steps / half)
        by_column = 10_000.0 ** -((steps + rules.alternating) / half)
        for row in range(4):
            for column in range(6):
                angles = np.concatenate([row * by_row, column * by_column])
                assert np.abs(cos[row, column] - np.cos(angles)).max() < 1e-6
                assert np.abs(sin[row, column] - np.sin(angles)).max() < 1e-6


def test_a_features_patches_are_a_square_and_an_odd_row_or_column_is_in_none() -> None:
    blocks = page_inputs(5, 7, LIGHTON)["blocks"].reshape(2, 3, 2, 2)
    for row in range(2):
        for column in range(3):
            corner = 14 * row + 2 * column
            assert blocks[row, column].tolist() == [[corner, corner + 1], [corner + 7, corner + 8]]


@pytest.mark.parametrize("family", RULES)
def test_tokens_are_counted_from_the_pixels_that_the_tower_gets(family) -> None:
    rules, sized = RULES[family]
    for size in [(100, 100), (1000, 1300), (301, 87)]:
        prepared = one_page(resize(Image.effect_noise(size, 50), rules, sized), rules)
        (make,) = prepared.passes
        feeds = make()
        rows, columns = (side // 14 for side in feeds["pixel_values"].shape[2:])
        assert prepared.token_count == (rows // 2) * (columns // 2) == math.prod(prepared.grid)
        assert len(feeds["blocks"]) == 4 * prepared.token_count
        assert len(feeds["rotary_cos"]) == rows * columns
