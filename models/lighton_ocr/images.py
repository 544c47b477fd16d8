"""LightOnOCR's image preparation: reduced to the longest edge, then each side up to whole patches.

A transcription of transformers' ``PixtralImageProcessor``. Patches of an odd last row or column take part in the
tower's attention, but are in no feature.
"""

from __future__ import annotations

import math

from models.family_settings import FamilySettings
from models.model_errors import InvalidInput
from models.patches import PatchRules, max_pixels_field


class ImageSettings(FamilySettings):
    """Settings of images."""

    max_pixels: int | None = max_pixels_field(2_371_600, 2_371_600)


class ImageRules(PatchRules):
    """The model's own image settings, from its checkpoint; kept in the manifest."""

    longest_edge: int  # pixels
    max_pixels: int | None = None  # limit that a request sets
    alternating: bool = True


def published_size(width: int, height: int, rules: ImageRules) -> tuple[int, int]:
    """(width, height) that an image is resized to: ``get_resize_output_image_size`` of the published code.

    A ``max_pixels`` that is set reduces further, to sides of whole patches.
    """
    patch, w, h = rules.patch_size, width, height
    if (ratio := max(h / rules.longest_edge, w / rules.longest_edge)) > 1:
        w, h = math.floor(w / ratio), math.floor(h / ratio)
    columns, rows = ((side - 1) // patch + 1 for side in (w, h))
    if rules.max_pixels is not None and columns * rows * patch**2 > rules.max_pixels:
        shrink = math.sqrt(w * h / rules.max_pixels)
        columns, rows = (math.floor(side / shrink / patch) for side in (w, h))
    return columns * patch, rows * patch


def resized_size(width: int, height: int, rules: ImageRules) -> tuple[int, int]:
    """``published_size``, unless nothing of the image would be left.

    Raises
    ------
    InvalidInput
        for an image that leaves no block of patches: the published code gives it no token.
    """
    found = published_size(width, height, rules)
    if min(found) < rules.factor:
        raise InvalidInput(
            f"the image has size {width} x {height}, of which {found[0]} x {found[1]} are left; this model sees blocks "
            f"of {rules.factor} pixels: enlarge the image, or cut it into pieces"
        )
    return found
