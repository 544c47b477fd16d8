"""Greys of more than eight bits, and of floating point, as eight bits, with the picture's white as white."""

from __future__ import annotations

import numpy as np
from PIL import Image, TiffTags

from .model_errors import InvalidInput

_BITS = (1, 8, 10, 12, 14, 16, 24, 32)  # bits of cameras and scanners, stored in a wider number
_TAGS = {tag.name: number for number, tag in TiffTags.TAGS_V2.items()}
_WHITE_IS_ZERO = 0  # value of PhotometricInterpretation


def eight_bits(image: Image.Image) -> np.ndarray:
    """Greys of a picture in one of Pillow's modes I, I;16 and F, shape [height, width], uint8.

    White is named by the file (TIFF's MaxSampleValue, BitsPerSample), or else is the largest number of as many bits as
    the brightest grey needs: a page of 12 bits stored in 16 would be black otherwise.

    Raises
    ------
    InvalidInput
        for greys below zero, and for floating point beyond 16 bits: their white is unknown.
    """
    greys = np.asarray(image)
    if image.mode == "F":
        greys = np.nan_to_num(greys, nan=0.0, posinf=0.0, neginf=0.0)
    lowest, highest = float(greys.min(initial=0)), float(greys.max(initial=0))
    if lowest < 0 or (image.mode == "F" and highest > 0xFFFF):
        kind = "floating point" if image.mode == "F" else "signed integers"
        raise InvalidInput(
            f"the picture's greys are {kind} from {lowest:g} to {highest:g}, and where white is nobody knows; save it "
            "with 8 or 16 bits"
        )
    white = _white(image, highest)
    eight = np.empty(greys.shape, np.uint8)
    for top in range(0, len(greys), 256):  # the whole page as floating point would take four times the memory
        part = greys[top : top + 256]
        eight[top : top + 256] = part // 257 if white == 0xFFFF else np.clip(part * (255 / white), 0, 255)
    if image.mode == "F" and _tag(image, "PhotometricInterpretation") == _WHITE_IS_ZERO:
        eight = 255 - eight  # as Pillow does for integers
    return eight


def _white(image: Image.Image, highest: float) -> float:
    """The number for white: the file's, or the largest of the fewest bits that hold the greys."""
    if image.mode == "F" and highest <= 1:
        return 1.0
    told = _tag(image, "SMaxSampleValue" if image.mode == "F" else "MaxSampleValue")
    if told is not None and highest <= told <= 0xFFFF_FFFF:
        return told
    bits = _tag(image, "BitsPerSample") or 16
    fewest = next(count for count in _BITS if highest < 1 << count)
    return float((1 << (int(bits) if image.mode != "F" and fewest <= bits < 16 else fewest)) - 1)


def _tag(image: Image.Image, name: str) -> float | None:
    """The number of a TIFF's tag about its samples."""
    value = getattr(image, "tag_v2", {}).get(_TAGS[name])
    value = value[0] if isinstance(value, tuple) and value else value
    return float(value) if isinstance(value, (int, float)) else None
