"""What every family and the documents need of a picture before anything else: upright, and in RGB.

Pillow does the work, as in the published code of the models.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data says, in RGB. An image that is so already comes back as a copy."""
    return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert as the published code does, but for 16-bit greys: Pillow would clip those to white."""
    if image.mode.startswith("I"):
        image = Image.fromarray(np.clip(np.asarray(image) // 257, 0, 255).astype(np.uint8))
    return image.convert("RGB")
