"""Word files: headings, lists, tables with merged cells, figures, editable formulas.

Takes the clean HTML of ``render`` and walks it; formulas go from MathML to Word's own markup by ``mathml2omml``. Needs
the extra ``formats``.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

import docx
import lxml.etree
import lxml.html
import mathml2omml
from docx.document import Document
from docx.enum.text import WD_BREAK
from docx.oxml import parse_xml
from docx.shared import Emu
from docx.text.paragraph import Paragraph

from .material import Material, figure_pictures
from .page_file import page_html_of
from .plain import printable
from .result import PageResult
from .tables import placed, span

_OMML = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_LISTS = {"ul": "List Bullet", "ol": "List Number"}
_CONTAINERS = {"section", "div", "figure", "blockquote", "tbody", "thead", "tfoot", "body"}
_BLOCKS = _CONTAINERS | set(_HEADINGS) | set(_LISTS) | {"p", "table", "pre", "hr"}
_PIXELS_PER_INCH = 144  # dots per inch of the page images that figures are cut from
_EMU_PER_INCH = 914_400


@dataclass(frozen=True)
class _Style:
    """The style of a run of characters."""

    bold: bool = False
    italic: bool = False
    underline: bool = False
    strike: bool = False
    raised: bool = False
    lowered: bool = False
    code: bool = False


_STYLES = {
    "b": {"bold": True}, "strong": {"bold": True}, "i": {"italic": True}, "em": {"italic": True},
    "u": {"underline": True}, "s": {"strike": True}, "del": {"strike": True}, "sup": {"raised": True},
    "sub": {"lowered": True}, "code": {"code": True},
}  # fmt: skip


class WordFile:
    """A document that grows page by page."""

    def __init__(self) -> None:
        self._document = docx.Document()
        self._first = True

    def add(self, markup: str, figures: Sequence[bytes]) -> None:
        """Add a page: its clean HTML, and its figures as PNG or JPEG in the order of the HTML's numbers."""
        if not self._first:
            self._document.add_paragraph().add_run().add_break(WD_BREAK.PAGE)
        self._first = False
        body = lxml.html.fragment_fromstring(markup, create_parent="body")
        _Page(self._document, figures).blocks(body)

    def save(self, file: IO[bytes]) -> None:
        """Write the whole document."""
        self._document.save(file)


class WordWriter:
    """Writes pages separated by page breaks."""

    def __init__(self, file: IO[bytes], material: Material) -> None:
        self._file, self._material = file, material
        self._pages = WordFile()

    def begin(self, head: Mapping[str, Any]) -> None: ...

    def page(self, result: PageResult) -> None:
        if result.state == "failed":
            words = f"page {result.page} could not be read: {result.error}"
            self._pages.add(f"<p><em>{html.escape(printable(words))}</em></p>", ())
        else:
            self._pages.add(page_html_of(result), figure_pictures(result, self._material))

    def end(self) -> None:
        self._pages.save(self._file)


class _Page:
    """Writes one page's elements."""

    def __init__(self, document: Document, figures: Sequence[bytes]) -> None:
        self._document, self._figures = document, figures
        section = document.sections[0]
        self._width = (section.page_width or 0) - (section.left_margin or 0) - (section.right_margin or 0)

    def blocks(self, parent: Any) -> None:
        """Write paragraphs, headings, lists and tables of ``parent``; loose words between them become paragraphs."""
        loose: list[Any] = []
        for node in _nodes(parent):
            if isinstance(node, str) or _tag(node) not in _BLOCKS:
                loose.append(node)
                continue
            self._loose(loose)
            loose = []
            self._block(node)
        self._loose(loose)

    def _loose(self, nodes: Sequence[Any]) -> None:
        if any(not isinstance(node, str) or node.strip() for node in nodes):
            self._inline(self._document.add_paragraph(), nodes, _Style())

    def _block(self, element: Any) -> None:
        tag = _tag(element)
        if tag in _CONTAINERS:
            self.blocks(element)
        elif tag in _HEADINGS:
            self._inline(self._document.add_heading(level=_HEADINGS[tag]), _nodes(element), _Style())
        elif tag in _LISTS:
            for item in element:
                self._item(item, _LISTS[tag])
        elif tag == "table":
            self._table(element)
        elif tag == "pre":
            self._inline(self._document.add_paragraph(), [element.text_content().rstrip("\n")], _Style(code=True))
        elif tag == "p":
            self._inline(self._document.add_paragraph(), _nodes(element), _Style())

    def _item(self, item: Any, style: str) -> None:
        inline = [node for node in _nodes(item) if isinstance(node, str) or _tag(node) not in _LISTS]
        self._inline(self._document.add_paragraph(style=style), inline, _Style())
        for nested in item:
            if _tag(nested) in _LISTS:
                for inner in nested:
                    self._item(inner, f"{_LISTS[_tag(nested)]} 2")

    def _inline(self, paragraph: Paragraph, nodes: Iterable[Any], style: _Style) -> None:
        for node in nodes:
            if isinstance(node, str):
                _run(paragraph, node, style)
            elif _tag(node) == "math":
                _formula(paragraph, node)
            elif _tag(node) == "img":
                self._figure(paragraph, node)
            elif _tag(node) == "br":
                paragraph.add_run().add_break()
            else:
                self._inline(paragraph, _nodes(node), replace(style, **_STYLES.get(_tag(node), {})))

    def _figure(self, paragraph: Paragraph, image: Any) -> None:
        number = image.get("data-figure", "")
        if number.isdigit() and int(number) < len(self._figures):
            picture = paragraph.add_run().add_picture(io.BytesIO(self._figures[int(number)]))
            natural = picture.width * 72 // _PIXELS_PER_INCH  # the library counts 72 pixels an inch
            width = min(natural, self._width)
            picture.height, picture.width = Emu(picture.height * width // picture.width), Emu(width)

    def _table(self, table: Any) -> None:
        rows = [
            [(span(cell.get("rowspan")), span(cell.get("colspan")), cell) for cell in row if _tag(cell) in ("td", "th")]
            for row in table.iter("tr")
        ]
        cells = placed(rows)
        if not cells:
            return
        columns = max(cell.column + cell.width for cell in cells)
        written = self._document.add_table(len(rows), columns, style="Table Grid")
        grid = [row.cells for row in written.rows]  # before merging, after which each look-up walks the whole table
        for one in cells:
            cell = grid[one.row][one.column]
            if one.height > 1 or one.width > 1:
                cell = cell.merge(grid[one.row + one.height - 1][one.column + one.width - 1])
            bold = _tag(one.what) == "th"
            self._inline(cell.paragraphs[0], _nodes(one.what), _Style(bold=bold))


def _formula(paragraph: Paragraph, element: Any) -> None:
    """Append a formula; where it cannot be converted, its plain characters."""
    element.tail = None
    source = lxml.etree.tostring(element, encoding="unicode")
    try:
        converted = mathml2omml.convert(source)
        node = parse_xml(converted.replace("<m:oMath>", f"<m:oMath {_OMML}>", 1))
    except Exception:  # the converter's own errors, or markup that Word's schema does not have
        _run(paragraph, element.text_content(), _Style(italic=True))
    else:
        paragraph._p.append(node)


def _run(paragraph: Paragraph, text: str, style: _Style) -> None:
    # XML has no place for control characters.
    run = paragraph.add_run("".join(letter for letter in text if letter.isprintable() or letter in "\n\t"))
    run.bold, run.italic, run.underline = style.bold or None, style.italic or None, style.underline or None
    run.font.strike = style.strike or None
    run.font.superscript, run.font.subscript = style.raised or None, style.lowered or None
    if style.code:
        run.font.name = "Courier New"


def _nodes(parent: Any) -> Iterator[Any]:
    """Texts and elements of ``parent`` in order. White space in the markup is one blank."""
    if parent.text:
        yield _folded(parent.text) if _tag(parent) != "pre" else parent.text
    for child in parent:
        yield child
        if child.tail:
            yield _folded(child.tail)


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _tag(element: Any) -> str:
    return element.tag if isinstance(element.tag, str) else ""
