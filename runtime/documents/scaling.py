"""Pictures with more pixels than a page may have, made smaller without standing in memory twice."""

from __future__ import annotations

import math

from PIL import Image

from models.pixels import Transparency, has_wide_greys, to_rgb
from models.tones import Greys

_STRIP_PIXELS = 4_000_000  # pixels of the picture that are scaled at once, if they are a row of the result or more


def fitting(width: int, height: int, most_pixels: int) -> tuple[int, int]:
    """The largest size of the same shape with at most ``most_pixels`` pixels."""
    if width * height <= most_pixels:
        return width, height
    scale = math.sqrt(most_pixels / (width * height))
    return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))


def scaled_rgb(image: Image.Image, size: tuple[int, int], transparency: Transparency) -> Image.Image:
    """The picture in RGB, scaled to ``size`` (width, height) in pixels. EXIF orientation is ignored."""
    greys = Greys(image) if has_wide_greys(image) else None
    scaled = Image.new("RGB", size)
    step = image.height / size[1]  # rows of the picture for one row of the result
    rows = max(1, int(_STRIP_PIXELS / (image.width * step)))
    for top in range(0, size[1], rows):
        bottom = min(top + rows, size[1])
        first = max(0, math.floor((top - 1) * step) - 1)  # the filter reaches a row of the result beyond
        last = min(image.height, math.ceil((bottom + 1) * step) + 1)
        strip = to_rgb(image.crop((0, first, image.width, last)), transparency, greys)
        box = (0, top * step - first, image.width, min(bottom * step, image.height) - first)
        scaled.paste(strip.resize((size[0], bottom - top), Image.Resampling.HAMMING, box=box), (0, top))
    return scaled
