"""Blocks: what a page consists of, in reading order, whoever found out about it (a model's answer or the layout step).

One vocabulary of kinds for all of them, so that whatever writes a page down need not know who read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from .grounding import FIGURE_LABEL, Box, pictures_in

Kind = Literal[
    "text", "title", "list", "table", "figure", "formula", "caption", "code", "header", "footer", "page_number",
    "footnote", "reference", "algorithm", "chart", "seal", "other",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)

# What models call things -> their kind. Labels come in lower case, with blanks and hyphens as underscores.
_KINDS: dict[str, Kind] = {
    **{kind: kind for kind in KINDS},
    "image": "figure", "picture": "figure", "header_image": "figure", "footer_image": "figure",
    "doc_title": "title", "paragraph_title": "title", "section_header": "title", "sub_title": "title",
    "image_caption": "caption", "table_caption": "caption", "figure_title": "caption", "chart_title": "caption",
    "table_title": "caption", "formula_caption": "caption", "image_title": "caption", "code_caption": "caption",
    "list_item": "list", "equation": "formula", "isolate_formula": "formula", "interline_equation": "formula",
    "display_formula": "formula", "inline_formula": "formula", "page_header": "header", "page_footer": "footer",
    "number": "page_number", "vision_footnote": "footnote", "page_footnote": "footnote", "table_footnote": "footnote",
    "image_footnote": "footnote", "reference_content": "reference", "ref_text": "reference",
    "abstract": "text", "content": "text", "aside_text": "text", "vertical_text": "text", "paragraph": "text",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a page.

    text : Markdown of the block alone; of a table HTML or Markdown, of a formula LaTeX without delimiters, of a figure
    empty or its caption. box : x0, y0, x1, y1 in pixels of the page as it was read; None: nobody knows. label : what
    the model called it. confidence : of the reading, 0 to 1. level : of a title, from 1 on; 0: nobody knows.
    detail : how its reading ended (``runtime.requests.FinishDetail``), where it is not whole. error : why it could not
    be read. score : how sure a layout detector is of the block, 0 to 1.
    """

    kind: Kind
    text: str
    box: tuple[int, int, int, int] | None = None
    label: str = ""
    confidence: float | None = None
    level: int = 0
    detail: str = ""
    error: str = ""
    score: float | None = None


def kind_of(label: str) -> Kind:
    """The kind of what a model calls ``label``; ``other`` where the label says nothing of one."""
    return _KINDS.get(label.strip().lower().replace(" ", "_").replace("-", "_"), "other")


def blocks_of(boxes: Iterable[Box]) -> tuple[Block, ...]:
    """Blocks for the places that an answer names. Where none has a text, their labels are the words that were read."""
    boxes = list(boxes)
    labels_are_text = not any(box.text for box in boxes)
    return tuple(
        Block("text", box.label, box.box)
        if labels_are_text and box.label != FIGURE_LABEL
        else Block(kind_of(box.label), box.text, box.box, box.label)
        for box in boxes
    )


def boxes_of(blocks: Iterable[Block]) -> tuple[Box, ...]:
    """The places of blocks, as they are told where an answer holds no places of its own."""
    return tuple(
        Box(FIGURE_LABEL if block.kind == "figure" else block.label or block.kind, block.text, block.box)
        for block in blocks
        if block.box is not None
    )


def places_of(blocks: Sequence[Block], found: Iterable[Box]) -> tuple[Box, ...]:
    """The places of a page: its blocks', where each has a label; else what was ``found`` in its text, if any."""
    labelled = bool(blocks) and all(block.label for block in blocks)
    return boxes_of(blocks) if labelled else tuple(found) or boxes_of(blocks)


def scaled(blocks: Iterable[Block], seen: tuple[int, int], page: tuple[int, int]) -> tuple[Block, ...]:
    """The blocks with boxes in pixels of the page, from such in pixels of the picture of it that a model saw.

    seen, page : (width, height).
    """
    scale = seen_per_pixel(seen, page)
    return tuple(
        block if block.box is None else replace(block, box=on_page(block.box, scale, page)) for block in blocks
    )


def seen_per_pixel(seen: tuple[int, int], page: tuple[int, int]) -> tuple[float, float]:
    """Pixels across and down of the picture that a model saw, for each one of the page."""
    return seen[0] / page[0], seen[1] / page[1]


def on_page(
    box: tuple[float, float, float, float], scale: tuple[float, float], page: tuple[float, float] = (math.inf, math.inf)
) -> tuple[int, int, int, int]:
    """A box of the picture that a model saw, in whole pixels of the page; what is off the page is moved to its edge."""
    left, top, right, bottom = (
        int(min(max(value / part, 0), side)) for value, part, side in zip(box, scale * 2, page * 2, strict=True)
    )
    return left, top, right, bottom


def figures_of(boxes: Iterable[Box], text: str) -> list[Box]:
    """The boxes that a page's text shows as pictures, in their order: those that it says so of, else by their label."""
    shown = set(pictures_in(text))
    return [box for box in boxes if (box.box in shown if shown else box.label == FIGURE_LABEL)]


def flaws_of(blocks: Iterable[Block]) -> dict[int, str]:
    """What is wrong with blocks that are not whole, a sentence each, by their number from 1."""
    return {order: _flaw(block, order) for order, block in enumerate(blocks, 1) if block.detail or block.error}


def _flaw(block: Block, order: int) -> str:
    what = f"block {order} ({block.label or block.kind})"
    if block.error:
        return f"{what} could not be read: {block.error}"
    if block.detail == "loop":
        return f"{what} was ended because its tail repeated itself"
    unread = block.detail in ("deadline", "cancelled") and not block.text
    return f"{what} was not read ({block.detail})" if unread else f"{what} was cut off by {block.detail}"
