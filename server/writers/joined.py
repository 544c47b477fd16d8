"""Results with tables joined that continue on the next page (``--join-tables``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from models.blocks import Block
from models.grounding import Box
from models.layout.join_tables import join_tables

from .result import PageResult


def with_joined_tables(results: Sequence[PageResult]) -> list[PageResult]:
    """The pages of a document, in order, with tables joined; never across a failed page, which has no blocks."""
    pages = join_tables([result.blocks for result in results])
    return [_changed(result, blocks) for result, blocks in zip(results, pages, strict=True)]


def _changed(result: PageResult, blocks: Sequence[Block]) -> PageResult:
    changes = [(old, new) for old, new in zip(result.blocks, blocks, strict=True) if old.text != new.text]
    text, boxes = result.text, list(result.boxes)
    for old, new in changes:
        text = text.replace(old.text, new.text, 1)
        boxes = [Box(box.label, new.text, box.box) if box.box == old.box else box for box in boxes]
    if any(not new.text for _, new in changes):
        text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return replace(result, text=text, boxes=tuple(boxes), blocks=tuple(blocks)) if changes else result
