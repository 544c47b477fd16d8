"""Tables of a page's Markdown: found, taken out, and written as HTML or as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Generic, Literal, TypeVar

Form = Literal["markdown", "html"]

_RULE = r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*"
TABLE = re.compile(
    r"<table\b[\s\S]*?</table\s*>"
    # A line with a bar, a rule under it, and all lines with a bar that follow.
    rf"|^[^\n]*\|[^\n]*\n(?=[^\n]*\|){_RULE}(?:\n[^\n]*\|[^\n]*)*$",
    re.MULTILINE | re.IGNORECASE,
)
_BAR = re.compile(r"(?<!\\)\|")
_WIDEST = 1000  # most columns or rows that a cell spans: a wrong number must not fill the memory
_MOST_PLACES = 20_000  # most places of one table with spans

T = TypeVar("T")


@dataclass(frozen=True)
class PlacedCell(Generic[T]):
    """A cell with its place in the grid."""

    row: int
    column: int
    height: int  # rows
    width: int  # columns
    what: T


def take_out(markdown: str, form: Form, place: Callable[[str], str]) -> str:
    """The text without its tables. ``place`` gets each table, written in ``form``, and returns its replacement."""

    def replaced(found: re.Match[str]) -> str:
        text = found[0]
        if text.lstrip().lower().startswith("<table"):
            return place(text if form == "html" else to_pipes(html_rows(text)))
        return place(text if form == "markdown" else to_html(pipe_rows(text)))

    return TABLE.sub(replaced, markdown)


def pipe_rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table, its header first."""
    lines = text.strip().split("\n")
    return [_cells(line) for number, line in enumerate(lines) if number != 1]


def _cells(line: str) -> list[str]:
    line = line.strip()
    cells = _BAR.split(line)
    if line.startswith("|"):
        cells = cells[1:]
    if len(cells) > 1 and not cells[-1].strip():
        cells = cells[:-1]
    return [cell.strip().replace("\\|", "|") for cell in cells]


def html_rows(text: str) -> list[list[str]]:
    """The cells of an HTML table. A cell that spans several places is in the first of them."""
    return rows_of(placed(_html_cells(text)))


def cells_of(text: str) -> list[PlacedCell[str]]:
    """The texts of a table in HTML or Markdown, each with its place."""
    if text.lstrip().lower().startswith("<table"):
        return placed(_html_cells(text))
    return placed([[(1, 1, cell) for cell in row] for row in pipe_rows(text)])


def rows_of(cells: Sequence[PlacedCell[str]]) -> list[list[str]]:
    """A table row by row; places that a cell spans are empty but for the first."""
    rows: list[list[str]] = [[] for _ in range(max((cell.row + cell.height for cell in cells), default=0))]
    for cell in cells:
        for row in rows[cell.row : cell.row + cell.height]:
            row.extend([""] * (cell.column + cell.width - len(row)))
        rows[cell.row][cell.column] = cell.what
    return rows


def placed(rows: Sequence[Sequence[tuple[int, int, T]]]) -> list[PlacedCell[T]]:
    """The places of an HTML table's cells, from rows of (height, width, content). No two cells share a place."""
    taken: set[tuple[int, int]] = set()
    cells = []
    for number, row in enumerate(rows):
        column = 0
        for height, width, what in row:
            while (number, column) in taken:
                column += 1
            height = min(height, len(rows) - number)
            if len(taken) + height * width > _MOST_PLACES:  # limits spans of a million columns
                height = width = 1
            places = {(number + y, column + x) for y in range(height) for x in range(width)}
            if places & taken:  # spans that overlap: the later cell keeps its corner only
                height = width = 1
                places = {(number, column)}
            taken |= places
            cells.append(PlacedCell(number, column, height, width, what))
            column += width
    return cells


def span(value: str | None) -> int:
    """The value of a cell's ``rowspan`` or ``colspan``."""
    value = (value or "").strip()
    return min(max(int(value), 1), _WIDEST) if value.isascii() and value.isdigit() and len(value) < 10 else 1


def _html_cells(text: str) -> list[list[tuple[int, int, str]]]:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.rows


def to_pipes(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the header."""
    width = max((len(row) for row in rows), default=0)
    lines = [
        "| "
        + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in [*row, *[""] * (width - len(row))])
        + " |"
        for row in rows
    ]
    return "\n".join([*lines[:1], "| " + " | ".join(["---"] * width) + " |", *lines[1:]]) if lines else ""


def to_html(rows: Sequence[Sequence[str]]) -> str:
    """HTML; the first row is the header."""
    tags = ["th", *["td"] * (len(rows) - 1)]
    lines = [
        "<tr>" + "".join(f"<{tag}>{html.escape(cell, quote=False)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in zip(tags, rows, strict=False)
    ]
    return "<table>" + "".join(lines) + "</table>"


@dataclass
class _Cell:
    height: int
    width: int
    text: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    """Collects rows; tables inside cells count as their text."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[tuple[int, int, str]]] = []
        self._cell: _Cell | None = None
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._depth += 1
        elif self._depth == 1 and tag == "tr":
            self._end_cell()
            self.rows.append([])
        elif self._depth == 1 and tag in ("td", "th"):
            self._end_cell()
            given = dict(attrs)
            self._cell = _Cell(span(given.get("rowspan")), span(given.get("colspan")))
        elif tag == "br" and self._cell is not None:
            self._cell.text.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._end_cell()
            self._depth -= 1
        elif tag in ("td", "th", "tr") and self._depth == 1:
            self._end_cell()

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.text.append(data)

    def _end_cell(self) -> None:
        cell, self._cell = self._cell, None
        if cell is None:
            return
        if not self.rows:
            self.rows.append([])
        self.rows[-1].append((cell.height, cell.width, "".join(cell.text).strip()))
