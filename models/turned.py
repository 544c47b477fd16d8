"""Pages that are turned to stand upright and straight, and places on them.

A turn is in degrees clockwise: quarters of a circle plus the few degrees by which a page was askew (92.5 is a quarter
and 2.5 degrees). Quarters swap a page's sides; the rest turns the page about its middle and keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from .blocks import Block
from .grounding import Box

Orient = Literal["off", "auto"]

Number = TypeVar("Number", int, float)

# Pillow counts counterclockwise.
_TURNS = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}
_DECIMALS = 2  # decimals of the degrees by which a page is straightened


def turned(image: Image.Image, degrees: float) -> Image.Image:
    """The picture turned clockwise; the same picture for 0 degrees. Corners are filled with the paper's colour."""
    quarters, askew = quarters_and_rest(degrees)
    if quarters:
        image = image.transpose(_TURNS[quarters])
    if askew:
        image = image.rotate(-askew, Image.Resampling.BICUBIC, fillcolor=_paper(image))
    return image


def quarters_and_rest(degrees: float) -> tuple[int, float]:
    """A turn as 0, 90, 180 or 270 degrees, and the rest, between -45 and 45."""
    quarters = round(degrees / 90) * 90
    return quarters % 360, round(degrees - quarters, _DECIMALS)


def turned_size(size: tuple[Number, Number], degrees: float) -> tuple[Number, Number]:
    """Width and height of a page turned."""
    return size if quarters_and_rest(degrees)[0] % 180 == 0 else (size[1], size[0])


def turned_box(
    box: tuple[Number, Number, Number, Number], size: tuple[Number, Number], degrees: float
) -> tuple[Number, Number, Number, Number]:
    """The box (x0, y0, x1, y1) of a page of ``size`` after the page is turned clockwise.

    The rest of a turn moves the box's middle and keeps its size: the box of a line that lies askew cuts the line's
    corners, instead of holding half of its neighbours.
    """
    quarters, askew = quarters_and_rest(degrees)
    there = _by_quarters(box, size, quarters)
    return _straightened(there, turned_size(size, quarters), askew) if askew else there


def _by_quarters(
    box: tuple[Number, Number, Number, Number], size: tuple[Number, Number], degrees: int
) -> tuple[Number, Number, Number, Number]:
    (x0, y0, x1, y1), (width, height) = box, size
    match degrees:
        case 90:
            return height - y1, x0, height - y0, x1
        case 180:
            return width - x1, height - y1, width - x0, height - y0
        case 270:
            return y0, width - x1, y1, width - x0
    return box


def _straightened(
    box: tuple[Number, Number, Number, Number], size: tuple[Number, Number], degrees: float
) -> tuple[Number, Number, Number, Number]:
    """Turn a box by the rest of a turn. Parts off the page are cut off; boxes move by whole pixels."""
    (x0, y0, x1, y1), (width, height) = box, size
    x, y = (x0 + x1 - width) / 2, (y0 + y1 - height) / 2  # the box's middle, seen from the page's
    there = moved(x, y, degrees)
    right, down = round(there[0] - x), round(there[1] - y)
    return (
        min(max(x0 + right, 0), width), min(max(y0 + down, 0), height),
        min(max(x1 + right, 0), width), min(max(y1 + down, 0), height),
    )  # fmt: skip


def moved(x: Any, y: Any, degrees: float) -> tuple[Any, Any]:
    """Points turned clockwise about the origin: numbers, or arrays of one shape. y counts downwards."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return x * cosine - y * sine, x * sine + y * cosine


def _paper(image: Image.Image) -> Any:
    """The median colour of a picture's edges."""
    values = np.asarray(image)
    edges = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    median = np.median(edges, axis=0).astype(int)
    return tuple(median.tolist()) if median.ndim else int(median)


def described_turn(degrees: float) -> dict[str, Any]:
    """A turn in the form of results: ``rotated`` by quarters, ``straightened`` by the rest; zeros are left out."""
    quarters, askew = quarters_and_rest(degrees)
    return ({"rotated": quarters} if quarters else {}) | ({"straightened": askew} if askew else {})


def turn_of(entry: Mapping[str, Any]) -> float:
    """The turn from the form of ``described_turn``. Raises ValueError, TypeError for any other form."""
    return int(entry.get("rotated", 0)) + float(entry.get("straightened", 0))


def turned_boxes(boxes: Iterable[Box], size: tuple[int, int], degrees: float) -> tuple[Box, ...]:
    """``turned_box`` of all boxes."""
    return tuple(Box(box.label, box.text, turned_box(box.box, size, degrees)) for box in boxes)


def turned_blocks(blocks: Iterable[Block], size: tuple[int, int], degrees: float) -> tuple[Block, ...]:
    """``turned_box`` of all blocks that have a box."""
    return tuple(
        block if block.box is None else replace(block, box=turned_box(block.box, size, degrees)) for block in blocks
    )


def back(degrees: float) -> float:
    """The turn that undoes another."""
    return -degrees % 360
