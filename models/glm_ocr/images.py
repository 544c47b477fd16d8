"""GLM-OCR's image preparation: one resize to whole blocks of patches, within the checkpoint's limits.

A transcription of transformers' ``Glm46VImageProcessor``, which counts a still picture as two frames, so that the
published limits bound twice the pixels. Here limits are halved once, and all numbers are pixels of the picture.
"""

from __future__ import annotations

from models.family_settings import FamilySettings
from models.patches import A4_PIXELS, LimitedRules, max_pixels_field, min_pixels_field, whole_blocks

PUBLISHED_MAX_PIXELS = 4_816_896
MAX_PIXELS = A4_PIXELS  # the default limit. The published limit takes a CPU six times as long.


class ImageSettings(FamilySettings):
    """Settings of images."""

    min_pixels: int | None = min_pixels_field(PUBLISHED_MAX_PIXELS, 6_272)
    max_pixels: int | None = max_pixels_field(PUBLISHED_MAX_PIXELS, MAX_PIXELS)


class ImageRules(LimitedRules):
    """The model's own image settings, from its checkpoint; kept in the manifest."""

    min_pixels: int = 6_272
    max_pixels: int = PUBLISHED_MAX_PIXELS


def resized_size(width: int, height: int, rules: ImageRules) -> tuple[int, int]:
    """(width, height) that an image is resized to: ``smart_resize`` of the published code.

    Raises
    ------
    InvalidInput
        for an image that is more than 200 times as long as it is wide.
    """
    factor, w, h = rules.factor, width, height
    if min(w, h) < factor:
        scale = max(factor / h, factor / w)
        w, h = int(w * scale), int(h * scale)  # truncated, as published
    return whole_blocks(w, h, rules, (width, height))
