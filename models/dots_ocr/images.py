"""dots.ocr's image preparation: one resize to whole blocks of patches, within the checkpoint's limits.

A transcription of transformers' ``Qwen2VLImageProcessor``, as vLLM serves the model. The authors' own script resizes
twice, first with a larger limit: beyond 11.29 megapixels its pixels differ.
"""

from __future__ import annotations

from models.family_settings import FamilySettings
from models.patches import A4_PIXELS, LimitedRules, max_pixels_field, min_pixels_field, whole_blocks

PUBLISHED_MAX_PIXELS = 11_289_600
MAX_PIXELS = A4_PIXELS  # the default limit. The published limit takes a CPU hours.


class ImageSettings(FamilySettings):
    """Settings of images."""

    min_pixels: int | None = min_pixels_field(PUBLISHED_MAX_PIXELS, 3_136)
    max_pixels: int | None = max_pixels_field(PUBLISHED_MAX_PIXELS, MAX_PIXELS)


class ImageRules(LimitedRules):
    """The model's own image settings, from its checkpoint; kept in the manifest."""

    min_pixels: int = 3_136
    max_pixels: int = PUBLISHED_MAX_PIXELS


def resized_size(width: int, height: int, rules: ImageRules) -> tuple[int, int]:
    """(width, height) that an image is resized to: ``smart_resize`` of the published code.

    Raises
    ------
    InvalidInput
        for an image that is more than 200 times as long as it is wide.
    """
    return whole_blocks(width, height, rules, (width, height))
