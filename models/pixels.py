"""What every family and the documents need of a picture before anything else: upright, opaque and in RGB.

Pillow does the work, as in the published code of the models.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, features

Transparency = Literal["white", "black", "drop"]

Turn = Image.Transpose
# By EXIF orientation: what makes the picture upright.
_TURNS = {
    2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM, 5: Turn.TRANSPOSE, 6: Turn.ROTATE_270,
    7: Turn.TRANSVERSE, 8: Turn.ROTATE_90,
}  # fmt: skip
_LYING = (5, 6, 7, 8)  # orientations that exchange the sides


def upright_rgb(image: Image.Image, transparency: Transparency = "white") -> Image.Image:
    """The picture turned as its EXIF data says, in RGB. An image that is so already comes back as a copy."""
    turn = _TURNS.get(orientation(image))
    upright = to_rgb(image if turn is None else image.transpose(turn), transparency)
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


def to_rgb(image: Image.Image, transparency: Transparency = "white") -> Image.Image:
    """Convert as the published code does, but for 16-bit greys, which Pillow would clip to white, and transparency.

    transparency : what is laid under it. ``drop`` is the published code's: colours as they are stored where nobody sees
    them, most often black, so that dark text on a transparent ground is black on black.
    """
    if image.mode.startswith("I"):
        greys = np.asarray(image)
        eight = np.clip(greys // 257, 0, 255).astype(np.uint8)
        if isinstance(clear := image.info.get("transparency"), int) and transparency != "drop":
            eight[greys == clear] = 255 if transparency == "white" else 0
        return Image.fromarray(eight).convert("RGB")
    if transparency == "drop" or not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # Pillow knows no direct way
        image = image.convert("LA")
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, transparency), over).convert("RGB")


def _more_formats() -> tuple[str, ...]:
    """AVIF is in Pillow's own wheels. HEIF (HEIC) comes with the package pillow-heif, which is registered here."""
    heif = find_spec("pillow_heif") is not None
    if heif:
        import_module("pillow_heif").register_heif_opener()
    return tuple(name for name, there in (("AVIF", features.check("avif")), ("HEIF", heif)) if there)


MORE_FORMATS = _more_formats()  # Pillow's names of those that it reads where somebody has installed what it takes


def noise(side: int) -> Image.Image:
    """A square picture of noise, always the same, which no step of a preparation makes trivial."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
