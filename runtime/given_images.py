"""Pictures as callers of the Python API give them: paths, bytes or PIL images, opened and turned upright."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from models.model_errors import InvalidInput
from models.turned import turned

ImageLike = str | os.PathLike[str] | bytes | Image.Image


def open_image(image: ImageLike) -> Image.Image:
    """The picture, in its own mode. Raises InvalidInput for bytes or a file that cannot be read as a picture."""
    if isinstance(image, Image.Image):
        return image
    source = io.BytesIO(image) if isinstance(image, bytes) else Path(image).expanduser()
    name = "the image bytes" if isinstance(image, bytes) else str(source)
    try:
        with Image.open(source) as opened:
            opened.load()
            return opened
    except Exception as error:  # decoders of damaged files raise all kinds of errors, even OverflowError
        raise InvalidInput(f"{name} cannot be read as an image: {error}") from error


def made_upright(images: Sequence[Image.Image]) -> tuple[list[Image.Image], tuple[float, ...]]:
    """The pictures turned by their text, and the degrees clockwise by which each was turned."""
    from .documents.upright import degrees_to_upright  # only here, since few programs open documents

    degrees = tuple(map(degrees_to_upright, images))
    return list(map(turned, images, degrees)), degrees
