"""PaddleOCR-VL's image preparation: one resize to whole blocks of patches, within the checkpoint's limits.

A transcription of the published code (PaddlePaddle/PaddleOCR-VL, image_processing_paddleocr_vl.py). The number of image
tokens and the pixels come from the same resize: two computations that differ by a row would tear the prompt apart.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from models.errors import InvalidInput
from models.family_settings import FamilySettings
from models.pixels import upright_rgb

LARGEST_ASPECT_RATIO = 200  # published code
# PaddleX, pipelines/paddleocr_vl: a picture with both sides below this is doubled before text is spotted in it.
_LARGE_TO_SPOT = 1500
_PIXELS_TO_SPOT = 1_605_632


class ImageSettings(FamilySettings):
    """What may be set of it. The largest limit is that of the first published revision."""

    min_pixels: int | None = Field(
        None, ge=784, le=2_822_400, description="smaller images are enlarged to this many pixels", examples=[147_384]
    )
    max_pixels: int | None = Field(
        None, ge=784, le=2_822_400, description="larger images are reduced to this many pixels", examples=[1_003_520]
    )


class ImageRules(BaseModel):
    """The model's own image settings, from its checkpoint; the manifest keeps them."""

    model_config = ConfigDict(frozen=True)

    patch_size: int  # pixels
    merge_size: int  # patches a side that one image token covers
    min_pixels: int  # of a resized image
    max_pixels: int
    grid: int  # side of the position table, patches
    head_dim: int  # of the vision tower's attention
    rope_theta: float = 10_000.0  # of its rotary positions
    rescale_factor: float = 1 / 255
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def factor(self) -> int:
        """Sides of a resized image are multiples of this, pixels."""
        return self.patch_size * self.merge_size


def limited(rules: ImageRules, settings: ImageSettings) -> ImageRules:
    """The rules with the limits that are set; where only one is, the other gives way to it.

    Raises
    ------
    InvalidInput
        when both are set and leave nothing between them.
    """
    low, high = settings.min_pixels, settings.max_pixels
    if low is not None and high is not None and low > high:
        raise InvalidInput(f"min_pixels is {low} and max_pixels {high}; the first must not be the larger one")
    limits = {
        "min_pixels": low or min(rules.min_pixels, high or rules.min_pixels),
        "max_pixels": high or max(rules.max_pixels, low or rules.max_pixels),
    }
    return rules.model_copy(update=limits)


def for_spotting(image: Image.Image, rules: ImageRules, settings: ImageSettings) -> tuple[Image.Image, ImageRules]:
    """The image twice as large, unless it is large, and rules that let it be: as PaddleX has it for this task.

    A ``max_pixels`` that is set stays.
    """
    if max(image.size) < _LARGE_TO_SPOT and 0 not in image.size:
        image = upright_rgb(image)
        image = image.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS)
    most = rules.max_pixels if settings.max_pixels else max(rules.max_pixels, _PIXELS_TO_SPOT)
    return image, rules.model_copy(update={"max_pixels": most})


def resized_size(width: int, height: int, rules: ImageRules) -> tuple[int, int]:
    """(width, height) that an image is resized to: ``smart_resize`` of the published code.

    Both are multiples of ``rules.factor``, their product is within the model's limits, and the proportions are kept as
    well as that allows.

    Raises
    ------
    InvalidInput
        for an empty image, or one that is more than 200 times as long as it is wide.
    """
    if 0 in (width, height):
        raise InvalidInput(f"the image has size {width} x {height}; it needs at least one pixel")
    factor, w, h = rules.factor, width, height
    if h < factor:
        w, h = round(w * factor / h), factor
    if w < factor:
        w, h = factor, round(h * factor / w)
    if max(w, h) / min(w, h) > LARGEST_ASPECT_RATIO:
        raise InvalidInput(
            f"the image has size {width} x {height}; this model takes pictures up to {LARGEST_ASPECT_RATIO} times as "
            "long as they are wide: cut it into pieces"
        )
    columns, rows = round(w / factor), round(h / factor)  # round half to even, as published
    if columns * rows * factor**2 > rules.max_pixels:
        shrink = math.sqrt(w * h / rules.max_pixels)
        columns, rows = (max(1, math.floor(side / shrink / factor)) for side in (w, h))
    elif columns * rows * factor**2 < rules.min_pixels:
        grow = math.sqrt(rules.min_pixels / (w * h))
        columns, rows = (math.ceil(side * grow / factor) for side in (w, h))
    return columns * factor, rows * factor


def resize(image: Image.Image, rules: ImageRules) -> np.ndarray:
    """Orient the image by its EXIF data, convert it to RGB and resize it: [height, width, 3] uint8.

    Bytes, not floats: a request that waits in the queue holds a quarter of the memory.

    Raises
    ------
    InvalidInput
        see ``resized_size``.
    """
    if 0 in image.size:
        raise InvalidInput(f"the image has size {image.size[0]} x {image.size[1]}; it needs at least one pixel")
    image = upright_rgb(image)
    size = resized_size(*image.size, rules)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def normalise(pixels: np.ndarray, rules: ImageRules) -> np.ndarray:
    """[height, width, 3] uint8 -> [1, 3, height, width] float32."""
    values = pixels.transpose(2, 0, 1)[None].astype(np.float32, order="C")
    values *= np.float32(rules.rescale_factor)
    values -= np.array(rules.mean, np.float32).reshape(3, 1, 1)
    values /= np.array(rules.std, np.float32).reshape(3, 1, 1)
    return values
