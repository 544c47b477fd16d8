"""PaddleOCR-VL's image preparation: one resize to whole blocks of patches, within the checkpoint's limits.

A transcription of the published code (PaddlePaddle/PaddleOCR-VL, image_processing_paddleocr_vl.py). The number of image
tokens and the pixels come from the same resize: two computations might differ by a row.
"""

from __future__ import annotations

from PIL import Image

from models.family_settings import FamilySettings
from models.model_errors import InvalidInput
from models.patches import LimitedRules, max_pixels_field, min_pixels_field, whole_blocks
from models.pixels import upright_rgb

# PaddleX, pipelines/paddleocr_vl: a picture with both sides below this is doubled for spotting.
_LARGE_TO_SPOT = 1500
PIXELS_TO_SPOT = 1_605_632


class ImageSettings(FamilySettings):
    """Settings of images. The largest limit is that of the first published revision."""

    min_pixels: int | None = min_pixels_field(2_822_400, 147_384)
    max_pixels: int | None = max_pixels_field(2_822_400, 1_003_520)


class ImageRules(LimitedRules):
    """The model's own image settings, from its checkpoint; kept in the manifest."""

    grid: int  # side of the position table, patches
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


def for_spotting(image: Image.Image, rules: ImageRules, settings: ImageSettings) -> tuple[Image.Image, ImageRules]:
    """The image twice as large, unless it is large, and rules that keep its size: PaddleX's way for this task.

    A ``max_pixels`` that is set stays.
    """
    if max(image.size) < _LARGE_TO_SPOT and 0 not in image.size:
        image = upright_rgb(image)
        image = image.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS)
    most = rules.max_pixels if settings.max_pixels else max(rules.max_pixels, PIXELS_TO_SPOT)
    return image, rules.model_copy(update={"max_pixels": most})


def resized_size(width: int, height: int, rules: ImageRules) -> tuple[int, int]:
    """(width, height) that an image is resized to: ``smart_resize`` of the published code.

    Both are multiples of ``rules.factor``, their product is within the model's limits, and the proportions are kept as
    well as that allows.

    Raises
    ------
    InvalidInput
        for an empty image, or one that is more than 200 times as long as it is wide.
    """
    if 0 in (width, height):
        raise InvalidInput(f"the image has size {width} x {height}; it needs at least one pixel")
    factor, w, h = rules.factor, width, height
    if h < factor:
        w, h = round(w * factor / h), factor
    if w < factor:
        w, h = factor, round(h * factor / w)
    return whole_blocks(w, h, rules, (width, height))
