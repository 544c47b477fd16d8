"""Greys of more than eight bits, and of floating point, as eight bits, with the picture's white as white."""

from __future__ import annotations

import numpy as np
from PIL import Image, TiffTags

from .model_errors import InvalidInput

_BITS = (1, 8, 10, 12, 14, 16, 24, 32)  # bits of cameras and scanners, stored in a wider number
_TAGS = {tag.name: number for number, tag in TiffTags.TAGS_V2.items()}
_ROWS = 256  # rows looked at together
_WHITE_IS_ZERO = 0  # value of PhotometricInterpretation


class Greys:
    """What the greys of a picture mean: the number for white, and whether they are reversed.

    White is named by the file (TIFF's MaxSampleValue, BitsPerSample), or else is the largest number of as many bits as
    the brightest grey needs: a page of 12 bits stored in 16 would be black otherwise.
    """

    def __init__(self, image: Image.Image) -> None:
        """Look at the picture strip by strip: it may fill the memory.

        Raises
        ------
        InvalidInput
            for greys whose white is unknown: below zero, beyond 16 bits in floating point, or beyond 16 bits and far
            from the largest number of 24 or 32 bits.
        """
        ends = [(0.0, 0.0)]
        for top in range(0, image.height, _ROWS):
            greys = _finite(image.crop((0, top, image.width, min(top + _ROWS, image.height))))
            ends.append((float(greys.min(initial=0)), float(greys.max(initial=0))))
        lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
        self._white = _white(image, highest)
        is_dark = highest > 0xFFFF and highest < self._white / 2
        if lowest < 0 or is_dark or (image.mode == "F" and highest > 0xFFFF):
            kind = "floating point" if image.mode == "F" else "signed integers" if lowest < 0 else "integers"
            raise InvalidInput(
                f"the picture's greys are {kind} from {lowest:g} to {highest:g}, and where white is nobody knows; save "
                "it with 8 or 16 bits"
            )
        # Pillow itself reverses integers.
        self._reversed = image.mode == "F" and _tag(image, "PhotometricInterpretation") == _WHITE_IS_ZERO

    def eight_bits(self, part: Image.Image) -> np.ndarray:
        """Greys of the picture or of a part, shape [height, width], uint8."""
        eight = np.empty((part.height, part.width), np.uint8)
        for top in range(0, part.height, _ROWS):  # the whole as floating point would take four times the memory
            greys = _finite(part.crop((0, top, part.width, min(top + _ROWS, part.height))))
            scaled = greys // 257 if self._white == 0xFFFF else np.clip(greys * (255 / self._white), 0, 255)
            eight[top : top + _ROWS] = scaled
        return 255 - eight if self._reversed else eight


def _finite(image: Image.Image) -> np.ndarray:
    greys = np.asarray(image)
    return np.nan_to_num(greys, nan=0.0, posinf=0.0, neginf=0.0) if image.mode == "F" else greys


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
