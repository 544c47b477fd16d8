"""Pages as patches, for families whose tower takes one page of any proportions in one pass.

Sizes (``smart_resize`` of the Qwen2-VL line's published code), pixel values, and the vision graphs' other inputs: each
patch's angles, and the patches of each feature (see ``export.rms_vision``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from models.family import Feeds, Positions, PreparedImage, kept
from models.model_errors import InvalidInput
from models.pixels import upright_rgb

log = logging.getLogger(__name__)

LARGEST_ASPECT_RATIO = 200  # published code
LEAST_PIXELS = 784  # least limit: a block of 28 pixels a side, which is one image token in all these models
A4_PIXELS = 2_007_040  # of a page of A4 at 145 dots per inch; the default limit of models whose own a CPU cannot bear
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class PatchRules(BaseModel):
    """A model's own image settings, from its checkpoint; kept in the manifest."""

    model_config = ConfigDict(frozen=True)

    patch_size: int  # pixels
    merge_size: int  # patches a side that one image token covers
    head_dim: int  # channels of a head of the vision tower's attention
    rope_theta: float = 10_000.0  # base of its rotary positions
    alternating: bool = False  # columns have the frequencies between those of rows (Pixtral); else the same
    rescale_factor: float = 1 / 255
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @property
    def factor(self) -> int:
        """Pixels a side that one image token covers."""
        return self.patch_size * self.merge_size


class LimitedRules(PatchRules):
    """Settings of a model that limits a resized image's pixels."""

    min_pixels: int
    max_pixels: int


Rules = TypeVar("Rules", bound=PatchRules)
Limited = TypeVar("Limited", bound=LimitedRules)


class PixelLimits(Protocol):
    """Limits that requests can set; each family declares both fields with its own ranges."""

    min_pixels: int | None
    max_pixels: int | None


def min_pixels_field(most: int, example: int) -> Any:
    """``min_pixels`` of a family's settings, as pydantic takes it. most : largest value. example : the default."""
    text = "smaller images are enlarged to this many pixels"
    return Field(None, ge=LEAST_PIXELS, le=most, description=text, examples=[example])


def max_pixels_field(most: int, example: int) -> Any:
    """``max_pixels``, in the same way."""
    text = "larger images are reduced to this many pixels"
    return Field(None, ge=LEAST_PIXELS, le=most, description=text, examples=[example])


def limited(rules: Limited, settings: PixelLimits, most: int | None = None) -> Limited:
    """The rules with the request's limits; where only one is set, the other gives way.

    most : default limit of pixels, for a model whose own is too large for a CPU.

    Raises
    ------
    InvalidInput
        when both are set and contradict each other.
    """
    low, high = settings.min_pixels, settings.max_pixels
    if low is not None and high is not None and low > high:
        raise InvalidInput(f"min_pixels is {low} and max_pixels {high}; the first must not be the larger one")
    own = rules.max_pixels if most is None else min(most, rules.max_pixels)
    found = {
        "min_pixels": low or min(rules.min_pixels, high or own),
        "max_pixels": high or max(own, low or own),
    }
    return rules.model_copy(update=found)


def say_limit(model_id: str, most: int, rules: LimitedRules) -> None:
    """Log that by default pictures are reduced further than by the publisher."""
    if most < rules.max_pixels:
        log.info(
            "%s reads pictures at %.1f megapixels at most, which a CPU bears; published are %.1f: max_pixels = %d",
            model_id, most / 1e6, rules.max_pixels / 1e6, rules.max_pixels,
        )  # fmt: skip


def whole_blocks(width: int, height: int, rules: LimitedRules, given: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in multiples of ``rules.factor``, with the proportions kept as well as the limits allow.

    given : the image's own size, for the message.

    Raises
    ------
    InvalidInput
        for a picture that is more than 200 times as long as it is wide.
    """
    if max(width, height) / min(width, height) > LARGEST_ASPECT_RATIO:
        raise InvalidInput(
            f"the image has size {given[0]} x {given[1]}; this model takes pictures up to {LARGEST_ASPECT_RATIO} times "
            "as long as they are wide: cut it into pieces"
        )
    factor = rules.factor
    columns, rows = round(width / factor), round(height / factor)  # round half to even, as published
    if columns * rows * factor**2 > rules.max_pixels:
        shrink = math.sqrt(width * height / rules.max_pixels)
        columns, rows = (max(1, math.floor(side / shrink / factor)) for side in (width, height))
    elif columns * rows * factor**2 < rules.min_pixels:
        grow = math.sqrt(rules.min_pixels / (width * height))
        columns, rows = (math.ceil(side * grow / factor) for side in (width, height))
    return columns * factor, rows * factor


def resize(image: Image.Image, rules: Rules, sized: Callable[[int, int, Rules], tuple[int, int]]) -> np.ndarray:
    """Orient the image by its EXIF data, convert it to RGB and resize it: [height, width, 3] uint8.

    sized : (width, height of the upright image, rules) -> the new width and height.

    Bytes, not floats: a request that waits in the queue holds a quarter of the memory.

    Raises
    ------
    InvalidInput
        for an empty image, and what ``sized`` raises.
    """
    if 0 in image.size:
        raise InvalidInput(f"the image has size {image.size[0]} x {image.size[1]}; it needs at least one pixel")
    image = upright_rgb(image)
    return np.asarray(image.resize(sized(*image.size, rules), Image.Resampling.BICUBIC))


def normalise(pixels: np.ndarray, rules: PatchRules) -> np.ndarray:
    """[height, width, 3] uint8 -> [1, 3, height, width] float32."""
    values = pixels.transpose(2, 0, 1)[None].astype(np.float32, order="C")
    values *= np.float32(rules.rescale_factor)
    values -= np.array(rules.mean, np.float32).reshape(3, 1, 1)
    values /= np.array(rules.std, np.float32).reshape(3, 1, 1)
    return values


def patch_rotary(rows: int, columns: int, rules: PatchRules) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin for each patch, [rows * columns, head_dim / 2]: one half by the patch's row, the other by its column.

    Computed in float32 step by step like the published code, so that both round alike.
    """
    powers = np.arange(0, rules.head_dim, 2, dtype=np.float32) / np.float32(rules.head_dim)
    frequencies = (1.0 / np.power(np.float32(rules.rope_theta), powers)).astype(np.float32)
    by_row, by_column = frequencies[::2], frequencies[int(rules.alternating) :: 2]
    row, column = (place.astype(np.float32) for place in np.divmod(np.arange(rows * columns)[:, None], columns))
    angles = np.concatenate([row * by_row, column * by_column], axis=1)
    return np.cos(angles), np.sin(angles)


def patch_blocks(rows: int, columns: int, merge: int) -> np.ndarray:
    """The patches of each feature, counted row by row, feature after feature: [tokens * merge²] int64.

    Rows and columns that do not fill a block are left out.
    """
    whole = np.arange(rows * columns).reshape(rows, columns)[: rows // merge * merge, : columns // merge * merge]
    blocks = whole.reshape(rows // merge, merge, columns // merge, merge).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(blocks).ravel()


@lru_cache(maxsize=2)  # the tables of the largest page have 30 MB
def page_inputs(rows: int, columns: int, rules: PatchRules) -> Feeds:
    """Inputs of the vision graph beside the pixels, for a page of ``rows`` x ``columns`` patches."""
    cos, sin = patch_rotary(rows, columns, rules)
    return kept({"rotary_cos": cos, "rotary_sin": sin, "blocks": patch_blocks(rows, columns, rules.merge_size)})


def one_page(
    pixels: np.ndarray, rules: Rules, beside: Callable[[int, int, Rules], Feeds] = page_inputs
) -> PreparedImage:
    """One vision pass for the whole of a resized image, [height, width, 3] uint8.

    beside : (rows, columns of patches, rules) -> the vision graph's other inputs.
    """
    patches = (pixels.shape[0] // rules.patch_size, pixels.shape[1] // rules.patch_size)
    rows, columns = (side // rules.merge_size for side in patches)

    def feeds() -> Feeds:
        return {"pixel_values": normalise(pixels, rules), **beside(*patches, rules)}

    return PreparedImage([feeds], rows * columns, lambda outputs: outputs[0]["features"], (rows, columns))


def token_positions(prompt_ids: Sequence[int], image_token: int, images: Sequence[PreparedImage]) -> Positions:
    """Time, row and column of each token of a prompt.

    A text token has the same position in all three axes. An image that begins at position p stays at time p, and its
    features spread over rows and columns from p on; the text behind continues after the largest of these positions.
    """
    pieces, position, start = [], 0, 0
    is_image = np.asarray(prompt_ids) == image_token
    for image in images:
        begin = start + int(is_image[start:].argmax())
        pieces.append(np.tile(np.arange(position, position + begin - start), (3, 1)))
        position += begin - start
        rows, columns = image.grid
        row, column = np.divmod(np.arange(rows * columns), columns)
        pieces.append(position + np.stack([np.zeros_like(row), row, column]))
        position += max(rows, columns)
        start = begin + rows * columns
    rest = len(prompt_ids) - start
    pieces.append(np.tile(np.arange(position, position + rest), (3, 1)))
    return Positions(np.concatenate(pieces, axis=1), position + rest)
