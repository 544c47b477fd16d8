"""ALTO 4: pages, blocks, lines and words with their boxes, as the XML that libraries and archives keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from models.blocks import KINDS

from .hocr import whole
from .material import Material
from .placing import Area, Line, Rect, areas_as_they_came
from .plain import printable
from .result import PageResult
from .text import TextFile

_PICTURES = ("figure", "chart", "seal")
_NAMESPACE = "http://www.loc.gov/standards/alto/ns-v4#"


class AltoWriter:
    """Writes ALTO; tags name the kinds of blocks."""

    def __init__(self, file: TextFile, material: Material) -> None:
        self._file = file

    def begin(self, head: Mapping[str, Any]) -> None:
        name = escape(printable(PurePath(head["document"]).name))
        model = escape(printable(str(head.get("model") or "")))
        tags = "".join(f'<LayoutTag ID="KIND_{kind}" LABEL="{kind}"/>' for kind in KINDS)
        self._file.write(
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<alto xmlns="{_NAMESPACE}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
            f'xsi:schemaLocation="{_NAMESPACE} http://www.loc.gov/standards/alto/v4/alto-4-4.xsd">\n'
            "<Description><MeasurementUnit>pixel</MeasurementUnit>"
            f"<sourceImageInformation><fileName>{name}</fileName></sourceImageInformation>"
            '<Processing ID="PROCESSING"><processingSoftware><softwareCreator>ocr-onnx</softwareCreator>'
            f"<softwareName>{model}</softwareName></processingSoftware></Processing></Description>\n"
            f"<Tags>{tags}</Tags>\n<Layout>\n"
        )

    def page(self, result: PageResult) -> None:
        number, (width, height) = result.page, result.size_as_it_came
        whole_page = _place((0, 0, width, height))
        if result.state == "failed":
            self._file.write(f'<Page ID="page_{number}" PHYSICAL_IMG_NR="{number}"/>\n')
            return
        sure = "" if result.confidence is None else f' PC="{result.confidence.mean:.4f}"'
        size = f'WIDTH="{width}" HEIGHT="{height}"'
        self._file.write(
            f'<Page ID="page_{number}" PHYSICAL_IMG_NR="{number}" {size}{sure}><PrintSpace {whole_page}>\n'
        )
        for n, area in enumerate(areas_as_they_came(result), 1):
            self._file.write("".join(_block(area, f"{number}_{n}", result.rotated)))
        self._file.write("</PrintSpace></Page>\n")

    def end(self) -> None:
        self._file.write("</Layout>\n</alto>\n")
        self._file.flush()


def _block(area: Area, number: str, rotated: float) -> Iterator[str]:
    """rotated : degrees clockwise that made the page upright; unturned, blocks lean the other way."""
    turn = f' ROTATION="{rotated:g}"' if rotated else ""
    known = f'ID="block_{number}" {_place(area.box)} TAGREFS="KIND_{area.block.kind}"{turn}'
    if not area.lines:
        name = "Illustration" if area.block.kind in _PICTURES else "GraphicalElement"
        yield f"<{name} {known}/>\n"
        return
    yield f"<TextBlock {known}>\n"
    for n, line in enumerate(area.lines, 1):
        yield from _line(line, f"{number}_{n}", area.block.confidence)
    yield "</TextBlock>\n"


def _line(line: Line, number: str, certainty: float | None) -> Iterator[str]:
    sure = "" if certainty is None else f' WC="{certainty:.4f}"'
    yield f'<TextLine ID="line_{number}" {_place(line.box)}>'
    for n, word in enumerate(line.words, 1):
        if n > 1:
            yield "<SP/>"
        yield f'<String ID="word_{number}_{n}" CONTENT={quoteattr(word.text)} {_place(word.box)}{sure}/>'
    yield "</TextLine>\n"


def _place(box: Rect) -> str:
    x0, y0, x1, y1 = whole(box)
    return f'HPOS="{x0}" VPOS="{y0}" WIDTH="{x1 - x0}" HEIGHT="{y1 - y0}"'
