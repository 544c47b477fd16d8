"""Fields of the ``ocr`` extension of answers that say what is on a page: size, boxes, blocks, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.blocks import Block, flaws_of, places_of
from models.turned import back, described_turn, turned_blocks, turned_boxes, turned_size
from runtime.requests import TextModel
from server.writers.result import describe_block


def describe_boxes(
    model: TextModel, text: str, size: tuple[int, int], page: int, blocks: Sequence[Block] = (), rotated: float = 0
) -> list[dict[str, Any]]:
    """The boxes of a page in the API's form: of its labelled blocks, else those named in its text.

    size : of the page as it was read, turned by ``rotated`` degrees. Boxes are told on the unturned page.
    """
    places = turned_boxes(places_of(blocks, model.boxes(text, *size)), size, back(rotated))
    boxes: list[dict[str, Any]] = [{"label": one.label, "text": one.text, "box": list(one.box)} for one in places]
    if len(boxes) == len(blocks) and all(block.label for block in blocks):
        boxes = [
            {**box, **_known(block, order)} for order, (box, block) in enumerate(zip(boxes, blocks, strict=True), 1)
        ]
    return [{**box, "page": page} for box in boxes]


def _known(block: Block, order: int) -> dict[str, Any]:
    """Fields of a block beside its box. order : of the block on its page, from 1."""
    sure = {} if block.confidence is None else {"confidence": block.confidence}
    return {"label": block.label, "kind": block.kind, "order": order, **sure}


def describe_blocks(
    blocks: Sequence[Block], page: int, size: tuple[int, int], rotated: float = 0
) -> list[dict[str, Any]]:
    """The blocks of a page, in the form of results. size, rotated : see ``describe_boxes``."""
    return [{**describe_block(block), "page": page} for block in turned_blocks(blocks, size, back(rotated))]


def describe_size(page: int, size: tuple[int, int], rotated: float) -> dict[str, Any]:
    """A page's number, unturned size, and turn, if there was one. See ``describe_boxes``."""
    width, height = turned_size(size, rotated)
    return {"page": page, "width": width, "height": height, **described_turn(rotated)}


def describe_flaws(blocks: Sequence[Block], page: int) -> list[dict[str, Any]]:
    """Numbers of the blocks of a page that are not whole, and why."""
    return [
        {"page": page, "block": order, "detail": blocks[order - 1].detail, "warning": warning}
        for order, warning in flaws_of(blocks).items()
    ]


def describe_warnings(warnings: Sequence[str], truncated: bool) -> dict[str, Any]:
    """Fields about a drawn page that may not be whole; none for a whole page."""
    return {**({"warnings": list(warnings)} if warnings else {}), **({"truncated": True} if truncated else {})}
