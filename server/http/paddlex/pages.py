"""Turns a page's blocks into PaddleX's form: Markdown with pictures, and the blocks as JSON."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from models.blocks import Block
from models.grounding import Box
from models.layout.labels import LABELS
from models.layout.page import SEPARATOR, to_markdown
from models.layout.page_rules import PageRules
from server.writers.figures import as_jpeg, cut_out, overlay

# Blocks outside of the reading order.
_WITHOUT_ORDER = frozenset({
    "figure_title", "vision_footnote", "image", "chart", "table", "header", "header_image", "footer", "footer_image",
    "footnote", "aside_text",
})  # fmt: skip
_TABLE = "<table border=1 style='margin: auto; word-wrap: break-word;'>"
_CELL = "style='text-align: center; word-wrap: break-word;'"


class PaddlexPageWriter:
    """Writes one page. draw : draws the page's picture again."""

    def __init__(
        self, blocks: Sequence[Block], size: tuple[int, int], rules: PageRules, draw: Callable[[], Image.Image]
    ) -> None:
        self._blocks, self._size, self._rules, self._draw = blocks, size, rules, draw

    def markdown(self, *, pretty: bool) -> dict[str, Any]:
        """``markdown`` of a page: the text, and the pictures as base64 by the paths in the text."""
        pictures: dict[str, Block] = {}

        def link(block: Block) -> str:
            pictures[path := _path(block)] = block
            if not pretty:
                return f"![]({path})"
            assert block.box is not None
            share = 100 * (block.box[2] - block.box[0]) // self._size[0]
            return _centred(f'<img src="{path}" alt="Image" width="{share}%" />')

        written = [self._written(block, pretty, link) for block in self._blocks]
        text = SEPARATOR.join(one for one in written if one)
        page = self._draw() if pictures else None
        images = {path: _base64(cut_out(page, _place(block))) for path, block in pictures.items()} if page else {}
        return {"text": text, "images": images, "isStart": True, "isEnd": True}

    def overlay(self) -> str:
        """The page with its numbered blocks drawn on it, base64 of JPEG."""
        return _base64(overlay(self._draw(), [_place(block) for block in self._blocks], numbered=True))

    def parsed(self, *, formatted: bool) -> list[dict[str, Any]]:
        """``parsing_res_list`` of a page. formatted : contents are as in the Markdown."""
        order, parsed = 0, []
        for number, block in enumerate(self._blocks):
            ordered = block.label not in _WITHOUT_ORDER and block.label not in self._rules.hidden
            order += ordered
            content = self._written(block, True, lambda block: "") if formatted else block.text
            parsed.append(
                {
                    "block_label": block.label, "block_content": content, "block_bbox": list(block.box or ()),
                    "block_id": number, "block_order": order if ordered else None, "group_id": number,
                    **({"error": block.error} if block.error else {}),
                }
            )  # fmt: skip
        return parsed

    def found(self) -> list[dict[str, Any]]:
        """``boxes`` of ``layout_det_res``: the detector's regions."""
        return [
            {
                "cls_id": LABELS.index(block.label) if block.label in LABELS else -1, "label": block.label,
                "score": block.score, "coordinate": list(block.box or ()), "order": order,
            }
            for order, block in enumerate(self._blocks, 1)
        ]  # fmt: skip

    def _written(self, block: Block, pretty: bool, picture: Callable[[Block], str]) -> str:
        text = to_markdown(block, self._rules, picture)
        if not pretty or not text:
            return text
        if block.kind == "caption":
            return _centred(text)
        if block.kind == "table":
            return re.sub(r"<(t[dh])(?=[ >])", rf"<\1 {_CELL}", text.replace("<table>", _TABLE))
        return text


def _path(block: Block) -> str:
    return f"imgs/img_in_{block.label}_box_{'_'.join(map(str, block.box or ()))}.jpg"


def _place(block: Block) -> Box:
    assert block.box is not None
    return Box(block.label, block.text, block.box)


def _centred(text: str) -> str:
    return f'<div style="text-align: center;">{text}</div>'


def _base64(picture: Image.Image) -> str:
    return base64.b64encode(as_jpeg(picture)).decode()
