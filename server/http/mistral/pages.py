"""Turns this server's answer for a document into Mistral's pages: Markdown that names figures and tables by id."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from models.blocks import figures_of, kind_of
from models.grounding import Box, to_markdown, with_pictures
from models.model_errors import InvalidInput
from runtime.documents import DEFAULT_DPI
from server.writers import tables
from server.writers.figures import JPEG_QUALITY, cut_out

from .schema import OcrBody

# Mistral's names of kinds of blocks; all other kinds are text.
_BLOCKS = {
    "title": "title", "sub_title": "title", "table": "table", "image": "image", "equation": "equation",
    "formula": "equation", "list": "list", "header": "header", "footer": "footer", "code": "code",
    "image_caption": "caption", "table_caption": "caption", "caption": "caption", "reference": "references",
}  # fmt: skip

Draw = Callable[[int], Image.Image]  # number of a page, from 1 -> the page's picture as read


@dataclass
class MistralPageWriter:
    """Writes the pages of one document in order, with ids counted through the document."""

    body: OcrBody
    draw: Draw
    figures: int = 0  # ids given so far
    tables: int = 0
    _page: Image.Image | None = field(default=None, init=False)

    def page(self, described: Mapping[str, Any], text: str, boxes: list[Box]) -> dict[str, Any]:
        """One page.

        described : the page's entry in ``ocr.pages``. text : the page's part of the answer, with places. boxes : the
        page's boxes.
        """
        # A picture without a resolution has as many dots per inch as pages are drawn with: clients want a number.
        dpi = round(described.get("dpi", DEFAULT_DPI))
        size = {"dpi": dpi, "height": described["height"], "width": described["width"]}
        page: dict[str, Any] = {"index": described["page"] - 1, "markdown": "", "images": [], "dimensions": size}
        if "error" in described:
            # Mistral's form has no field for errors, and a message would be taken for the page's text.
            return {**page, "error": described["error"]}
        self._page = None
        figures = figures_of(boxes, text)
        links = [self._figure(page, box, described["page"]) for box in figures]
        places = {box.box: link for box, link in zip(figures, links, strict=True)}
        markdown = to_markdown(with_pictures(text, places), links.__getitem__)
        for link in links:  # links in Mistral's form; unwanted figures leave nothing
            shown = f"![{link}]({link})\n\n" if link else ""
            markdown = re.sub(rf"!\[\]\({re.escape(link)}\)\n*", shown, markdown, count=1)
        if self.body.table_format is not None:
            page["tables"] = []
            markdown = tables.take_out(markdown, self.body.table_format, lambda table: self._table(page, table))
        page["markdown"] = markdown.strip()
        if self.body.include_blocks:
            page["blocks"] = _blocks(boxes, figures, iter(links))
        return page

    def _figure(self, page: dict[str, Any], box: Box, number: int) -> str:
        """Add a figure. Returns its id; empty for a figure that the client does not want."""
        x0, y0, x1, y1 = box.box
        limit, smallest = self.body.image_limit, self.body.image_min_size or 0
        if (limit is not None and self.figures >= limit) or min(x1 - x0, y1 - y0) < smallest:
            return ""
        name = f"img-{self.figures}.jpeg"
        self.figures += 1
        corners = {"top_left_x": x0, "top_left_y": y0, "bottom_right_x": x1, "bottom_right_y": y1}
        picture = self._cut(box, number) if self.body.include_image_base64 else None
        page["images"].append({"id": name, **corners, "image_base64": picture, "image_annotation": None})
        return name

    def _cut(self, box: Box, number: int) -> str | None:
        try:
            self._page = self._page or self.draw(number)
        except InvalidInput:
            return None  # drawn before, and not now: text and corners are worth having
        out = io.BytesIO()
        cut_out(self._page, box).save(out, "JPEG", quality=JPEG_QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"

    def _table(self, page: dict[str, Any], content: str) -> str:
        form = self.body.table_format
        name = f"tbl-{self.tables}.{'md' if form == 'markdown' else 'html'}"
        self.tables += 1
        page["tables"].append({"id": name, "content": content, "format": form})
        return f"[{name}]({name})"


def _blocks(boxes: list[Box], figures: list[Box], links: Any) -> list[dict[str, Any]]:
    blocks = []
    for box in boxes:
        x0, y0, x1, y1 = box.box
        kind = "image" if box in figures else _BLOCKS.get(box.label, _BLOCKS.get(kind_of(box.label), "text"))
        block = {
            "type": kind, "top_left_x": x0, "top_left_y": y0, "bottom_right_x": x1, "bottom_right_y": y1,
            "content": box.text or ("" if kind_of(box.label) != "other" else box.label),
        }  # fmt: skip
        if kind == "image":
            block["image_id"] = next(links)
        blocks.append(block)
    return blocks
