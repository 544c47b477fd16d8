"""hOCR 1.2: pages, blocks, lines and words with their boxes, as XHTML for other OCR programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from models.blocks import Kind

from .material import Material
from .placing import Area, Line, Rect, Word, areas_as_they_came
from .plain import printable
from .result import PageResult
from .text import TextFile

_CLASSES: Mapping[Kind, str] = {
    "table": "ocr_table", "figure": "ocr_photo", "chart": "ocr_photo", "seal": "ocr_photo", "formula": "ocr_display",
    "caption": "ocr_caption", "header": "ocr_header", "footer": "ocr_footer", "page_number": "ocr_pageno",
}  # fmt: skip
_CAREA = "ocr_carea"
_CAPABILITIES = " ".join(["ocr_page", _CAREA, *dict.fromkeys(_CLASSES.values()), "ocr_par", "ocr_line", "ocrx_word"])


class HocrWriter:
    """Writes hOCR, page by page."""

    def __init__(self, file: TextFile, material: Material) -> None:
        self._file = file

    def begin(self, head: Mapping[str, Any]) -> None:
        self._name = printable(PurePath(head["document"]).name)
        system = quoteattr(printable(f"ocr-onnx {head.get('model', '')}").strip())
        self._file.write(
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" '
            '"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">\n'
            '<html xmlns="http://www.w3.org/1999/xhtml">\n<head>\n'
            f"<title>{escape(self._name)}</title>\n"
            '<meta http-equiv="Content-Type" content="text/html;charset=utf-8"/>\n'
            f'<meta name="ocr-system" content={system}/>\n'
            f'<meta name="ocr-capabilities" content="{_CAPABILITIES}"/>\n</head>\n<body>\n'
        )

    def page(self, result: PageResult) -> None:
        name = self._name.replace('"', "'")
        width, height = result.size_as_it_came
        title = f'image "{name}"; bbox 0 0 {width} {height}; ppageno {result.page - 1}'
        self._file.write(f'<div class="ocr_page" id="page_{result.page}" title={quoteattr(title)}>\n')
        for number, area in enumerate(areas_as_they_came(result), 1):
            known = _certainty(area, result)
            self._file.write("".join(_area(area, f"{result.page}_{number}", known, result.rotated)))
        self._file.write("</div>\n")

    def end(self) -> None:
        self._file.write("</body>\n</html>\n")
        self._file.flush()


def _certainty(area: Area, result: PageResult) -> float | None:
    """Confidence of a block's words, 0 to 1: the block's, else the page's."""
    if area.block.confidence is not None:
        return area.block.confidence
    return result.confidence.mean if result.confidence else None


def _area(area: Area, number: str, certainty: float | None, rotated: float) -> Iterator[str]:
    kind = _CLASSES.get(area.block.kind, _CAREA)
    yield f'<div class="{kind}" id="block_{number}" title="{bbox(area.box)}">\n'
    if area.lines:
        yield f'<p class="ocr_par" id="par_{number}" title="{bbox(area.box)}">\n'
        for n, line in enumerate(area.lines, 1):
            yield _line(line, f"{number}_{n}", certainty, rotated)
        yield "</p>\n"
    yield "</div>\n"


def _line(line: Line, number: str, certainty: float | None, rotated: float) -> str:
    """rotated : degrees clockwise that made the page upright; unturned, text leans the other way."""
    words = " ".join(_word(word, f"{number}_{n}", certainty) for n, word in enumerate(line.words, 1))
    direction = ' dir="rtl"' if line.right_to_left else ""
    angle = f"; textangle {rotated:g}" if rotated else ""
    return f'<span class="ocr_line" id="line_{number}" title="{bbox(line.box)}{angle}"{direction}>{words}</span>\n'


def _word(word: Word, number: str, certainty: float | None) -> str:
    sure = "" if certainty is None else f"; x_wconf {round(certainty * 100)}"
    return f'<span class="ocrx_word" id="word_{number}" title="{bbox(word.box)}{sure}">{escape(word.text)}</span>'


def bbox(box: Rect) -> str:
    """A box in whole pixels, none of them empty."""
    x0, y0, x1, y1 = whole(box)
    return f"bbox {x0} {y0} {x1} {y1}"


def whole(box: Rect) -> tuple[int, int, int, int]:
    """A box in whole pixels, at least one wide and high."""
    x0, y0, x1, y1 = map(round, box)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)
