"""Pictures made from a page: its figures cut out for the Markdown, and the page with the boxes drawn on it."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageFont

from models.blocks import figures_of
from models.grounding import Box

from .result import PageResult

JPEG_QUALITY = 90

_COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#e377c2", "#8c564b")


def _colour(label: str) -> str:
    """A label's colour, the same on every page. These bits of the hash differ between the most common labels."""
    return _COLOURS[(zlib.crc32(label.encode("utf-8", "surrogateescape")) >> 16) % len(_COLOURS)]


def cut_out(page: Image.Image, box: Box) -> Image.Image:
    """One figure, cut out; at least a pixel, wherever its corners are."""
    x0, y0, x1, y1 = box.box
    x0, y0 = min(x0, page.width - 1), min(y0, page.height - 1)
    return page.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))


def overlay(page: Image.Image, boxes: Sequence[Box], *, numbered: bool = False) -> Image.Image:
    """A copy of the page with each box outlined and labelled, one colour for each label.

    numbered : number the boxes in the order of blocks.
    """
    drawn = page.copy()
    draw = ImageDraw.Draw(drawn)
    side = max(drawn.size)
    width = max(1, side // 600)
    font = ImageFont.load_default(max(10, side // 90))
    for order, box in enumerate(boxes, 1):
        colour = _colour(box.label)
        x0, y0, x1, y1 = box.box
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=width)
        label = f"{order} {box.label[:40]}" if numbered else box.label[:40]
        left, top, right, bottom = draw.textbbox((x0, y0), label, font=font)
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=colour)
        draw.text((x0, y0), label, fill="white", font=font)
    return drawn


@dataclass(frozen=True)
class Pictures:
    """Makes the pictures of a document's pages. Paths are below the output folder, without number and ending."""

    images: str | None  # path of figures; None: not wanted
    overlays: str | None  # path of overlays; None: not wanted

    def make(self, result: PageResult, page: Image.Image) -> tuple[PageResult, dict[str, bytes]]:
        """Cut the figures out, and draw the overlay. Equal boxes share one file.

        Returns the result with links to the figures, and each picture as JPEG by its path.
        """
        made: dict[str, bytes] = {}
        links: dict[tuple[int, int, int, int], str] = {}
        boxes = figures_of(result.boxes, result.text) if self.images is not None else []
        for box in boxes:
            if box.box not in links:
                name = f"{self.images}-p{result.page}-{len(links)}.jpg"
                made[name] = as_jpeg(cut_out(page, box))
                links[box.box] = "/".join(name.split("/")[-2:])
        if self.overlays is not None:
            made[f"{self.overlays}-p{result.page}.jpg"] = as_jpeg(overlay(page, result.boxes, numbered=result.numbered))
        return replace(result, figures=tuple(links[box.box] for box in boxes)), made


def as_jpeg(image: Image.Image, quality: int = JPEG_QUALITY) -> bytes:
    """A picture as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
