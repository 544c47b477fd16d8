"""Pages that are turned to stand upright, and places on them. Turns are degrees clockwise: 0, 90, 180 or 270."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, TypeVar

from PIL import Image

from .blocks import Block
from .grounding import Box

Orient = Literal["off", "auto"]

Number = TypeVar("Number", int, float)

# Pillow counts counterclockwise.
_TURNS = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}


def turned(image: Image.Image, degrees: int) -> Image.Image:
    """The picture turned clockwise; itself where there is nothing to turn."""
    return image.transpose(_TURNS[degrees]) if degrees else image


def turned_size(size: tuple[Number, Number], degrees: int) -> tuple[Number, Number]:
    """Width and height of a page turned."""
    return size if degrees % 180 == 0 else (size[1], size[0])


def turned_box(
    box: tuple[Number, Number, Number, Number], size: tuple[Number, Number], degrees: int
) -> tuple[Number, Number, Number, Number]:
    """Where a box (x0, y0, x1, y1) of a page of ``size`` is when the page is turned clockwise."""
    (x0, y0, x1, y1), (width, height) = box, size
    match degrees:
        case 90:
            return height - y1, x0, height - y0, x1
        case 180:
            return width - x1, height - y1, width - x0, height - y0
        case 270:
            return y0, width - x1, y1, width - x0
    return box


def turned_boxes(boxes: Iterable[Box], size: tuple[int, int], degrees: int) -> tuple[Box, ...]:
    """As ``turned_box``, of all."""
    return tuple(Box(box.label, box.text, turned_box(box.box, size, degrees)) for box in boxes)


def turned_blocks(blocks: Iterable[Block], size: tuple[int, int], degrees: int) -> tuple[Block, ...]:
    """As ``turned_box``, of all that have a box."""
    return tuple(
        block if block.box is None else replace(block, box=turned_box(block.box, size, degrees)) for block in blocks
    )


def back(degrees: int) -> int:
    """The turn that undoes another."""
    return -degrees % 360
