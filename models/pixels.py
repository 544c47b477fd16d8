"""Pictures made upright, opaque and RGB, for every family and for documents.

Pillow does the work, as in the published code of the models.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import IO, Literal

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, features

from .tones import Greys

Transparency = Literal["white", "black", "drop"]

Turn = Image.Transpose
# Transposition that makes a picture upright, by EXIF orientation.
_TURNS = {
    2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM, 5: Turn.TRANSPOSE, 6: Turn.ROTATE_270,
    7: Turn.TRANSVERSE, 8: Turn.ROTATE_90,
}  # fmt: skip
_LYING = (5, 6, 7, 8)  # orientations that swap width and height


def upright_rgb(image: Image.Image, transparency: Transparency = "white") -> Image.Image:
    """The picture turned by its EXIF data, in RGB; always a copy."""
    return turned_upright(to_rgb(image, transparency), image)


def turned_upright(pixels: Image.Image, told: Image.Image) -> Image.Image:
    """``pixels`` turned by the EXIF data of ``told``, the picture that they come from."""
    turn = _TURNS.get(orientation(told))
    upright = pixels if turn is None else pixels.transpose(turn)
    upright.info = {}  # the orientation is stored in several places, and must not be applied twice
    return upright


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the picture, turned by its EXIF data."""
    width, height = image.size
    lying = orientation(image) in _LYING and image.format != "TIFF"  # HEIF: the size is the upright picture's already
    return (height, width) if lying else (width, height)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 for a picture without one, or with damaged metadata."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises all kinds of errors (SyntaxError, struct.error ...); the pixels are still good
        return 1
    return found if found in _TURNS else 1


def has_wide_greys(image: Image.Image) -> bool:
    """Whether the picture has greys of more than eight bits, whose white depends on the whole picture."""
    return image.mode.startswith("I") or image.mode == "F"


def to_rgb(image: Image.Image, transparency: Transparency = "white", greys: Greys | None = None) -> Image.Image:
    """Convert to RGB like the published code, except greys of many bits, which Pillow would clip, and transparency.

    transparency : the background. ``drop`` is the published code's way: the stored colours of transparent pixels, most
    often black, so that dark text on a transparent background is black on black. greys : of the picture that this is a
    part of, if it is one.
    """
    if has_wide_greys(image):
        eight = (greys or Greys(image)).eight_bits(image)
        if isinstance(clear := image.info.get("transparency"), int) and transparency != "drop":
            eight[np.asarray(image) == clear] = 255 if transparency == "white" else 0
        return Image.fromarray(eight).convert("RGB")
    if image.mode == "La":  # Pillow cannot convert these modes to RGB
        image = image.convert("LA")
    if image.mode == "LAB":
        return ImageCms.applyTransform(image, _from_lab()) or image
    if transparency == "drop" or not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, transparency), over).convert("RGB")


@cache
def _from_lab() -> ImageCms.ImageCmsTransform:
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, rgb, "LAB", "RGB")


def _more_formats() -> tuple[str, ...]:
    """AVIF is in Pillow's own wheels. HEIF (HEIC) comes with the package pillow-heif."""
    heif = find_spec("pillow_heif") is not None
    if heif:
        Image.register_open("HEIF", _first_heif, lambda start: start[4:8] == b"ftyp")
        Image.register_extensions("HEIF", [".heic", ".heics", ".heif", ".heifs", ".hif"])
    return tuple(name for name, there in (("AVIF", features.check("avif")), ("HEIF", heif)) if there)


def _first_heif(file: IO[bytes], name: str | bytes) -> ImageFile.ImageFile:
    """Load Pillow's plugin for HEIF on the first file, since most processes never need its memory."""
    import_module("pillow_heif").register_heif_opener()
    factory, accept = Image.OPEN["HEIF"]
    start = file.read(16)
    file.seek(0)
    if accept is None or not accept(start):
        raise SyntaxError("no HEIF file")  # what Pillow's plugins say
    return factory(file, name)


MORE_FORMATS = _more_formats()  # Pillow's names of formats that need an installed plugin


def noise(side: int) -> Image.Image:
    """A square picture of fixed noise, which no step of a preparation makes trivial."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
