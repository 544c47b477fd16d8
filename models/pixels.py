"""What every family and the documents need of a picture before anything else: upright, and in RGB.

Pillow does the work, as in the published code of the models.
"""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

Turn = Image.Transpose
# By EXIF orientation: what makes the picture upright.
_TURNS = {
    2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM, 5: Turn.TRANSPOSE, 6: Turn.ROTATE_270,
    7: Turn.TRANSVERSE, 8: Turn.ROTATE_90,
}  # fmt: skip
_LYING = (5, 6, 7, 8)  # orientations that exchange the sides


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data says, in RGB. An image that is so already comes back as a copy."""
    turn = _TURNS.get(orientation(image))
    upright = to_rgb(image if turn is None else image.transpose(turn))
    upright.info = {}  # the orientation stands there in several places, and must not be followed twice
    return upright


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the picture turned as its EXIF data says."""
    width, height = image.size
    return (height, width) if orientation(image) in _LYING else (width, height)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 for a picture that does not say, or whose metadata are damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises whatever it runs into (SyntaxError, struct.error ...); the pixels are still good
        return 1
    return found if found in _TURNS else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert as the published code does, but for 16-bit greys: Pillow would clip those to white."""
    if image.mode.startswith("I"):
        image = Image.fromarray(np.clip(np.asarray(image) // 257, 0, 255).astype(np.uint8))
    return image.convert("RGB")


def noise(side: int) -> Image.Image:
    """A square picture of noise, always the same, which no step of a preparation makes trivial."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
