"""Blocks: the parts of a page in reading order, from a model's answer or from the layout step.

All sources share one vocabulary of kinds, so that writers need not know who read the page.
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

# Models' labels -> kinds. Labels are in lower case, with blanks and hyphens as underscores.
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
    empty or its caption. box : x0, y0, x1, y1 in pixels of the page as it was read; None: unknown. label : the model's
    name for the block. confidence : of the reading, 0 to 1. level : of a title, from 1 on; 0: unknown.
    detail : how the reading ended (``runtime.requests.FinishDetail``), where the block is not whole. error : why the
    block could not be read. score : a layout detector's confidence in the block, 0 to 1.
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
    """The kind of a model's label; ``other`` for an unknown label."""
    return _KINDS.get(label.strip().lower().replace(" ", "_").replace("-", "_"), "other")


def blocks_of(boxes: Iterable[Box]) -> tuple[Block, ...]:
    """Blocks for the boxes that an answer names. Where no box has a text, the labels are the words that were read."""
    boxes = list(boxes)
    labels_are_text = not any(box.text for box in boxes)
    return tuple(
        Block("text", box.label, box.box)
        if labels_are_text and box.label != FIGURE_LABEL
        else Block(kind_of(box.label), box.text, box.box, box.label)
        for box in boxes
    )


def boxes_of(blocks: Iterable[Block]) -> tuple[Box, ...]:
    """Boxes of blocks, for an answer whose text names no boxes."""
    return tuple(
        Box(FIGURE_LABEL if block.kind == "figure" else block.label or block.kind, block.text, block.box)
        for block in blocks
        if block.box is not None
    )


def places_of(blocks: Sequence[Block], found: Iterable[Box]) -> tuple[Box, ...]:
    """The boxes of a page: of its blocks, where each has a label; else those ``found`` in its text."""
    labelled = bool(blocks) and all(block.label for block in blocks)
    return boxes_of(blocks) if labelled else tuple(found) or boxes_of(blocks)


def scaled(blocks: Iterable[Block], seen: tuple[int, int], page: tuple[int, int]) -> tuple[Block, ...]:
    """The blocks with boxes in pixels of the page, from boxes in pixels of the picture that the model saw.

    seen, page : (width, height).
    """
    scale = seen_per_pixel(seen, page)
    return tuple(
        block if block.box is None else replace(block, box=on_page(block.box, scale, page)) for block in blocks
    )


def seen_per_pixel(seen: tuple[int, int], page: tuple[int, int]) -> tuple[float, float]:
    """Pixels of the picture that a model saw for each pixel of the page, across and down."""
    return seen[0] / page[0], seen[1] / page[1]


def on_page(
    box: tuple[float, float, float, float], scale: tuple[float, float], page: tuple[float, float] = (math.inf, math.inf)
) -> tuple[int, int, int, int]:
    """A box of the picture that a model saw, in whole pixels of the page; corners off the page move to its edge."""
    left, top, right, bottom = (
        int(min(max(value / part, 0), side)) for value, part, side in zip(box, scale * 2, page * 2, strict=True)
    )
    return left, top, right, bottom


def figures_of(boxes: Iterable[Box], text: str) -> list[Box]:
    """The boxes that a page's text shows as pictures, in order: those of the text's picture comments, else by label."""
    shown = set(pictures_in(text))
    return [box for box in boxes if (box.box in shown if shown else box.label == FIGURE_LABEL)]


def flaws_of(blocks: Iterable[Block]) -> dict[int, str]:
    """A sentence about each block that is not whole, by the block's number from 1."""
    return {order: _flaw(block, order) for order, block in enumerate(blocks, 1) if block.detail or block.error}


def _flaw(block: Block, order: int) -> str:
    what = f"block {order} ({block.label or block.kind})"
    if block.error:
        return f"{what} could not be read: {block.error}"
    if block.detail == "loop":
        return f"{what} was ended because its tail repeated itself"
    unread = block.detail in ("deadline", "cancelled") and not block.text
    return f"{what} was not read ({block.detail})" if unread else f"{what} was cut off by {block.detail}"
