"""Joins tables that continue on the next page, without the repeated header."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from models.blocks import Block

_WIDTHS = 0.1  # share of the wider table's width
_MOST_HEADER_ROWS = 5
_MAY_FOLLOW = frozenset({"footer", "vision_footnote", "number", "footnote", "footer_image", "seal"})
_MAY_PRECEDE = frozenset({"header", "header_image", "number", "seal"})
_CONTINUED = re.compile(r"\bcontinued\b|续", re.IGNORECASE)
_ROW = re.compile(r"<tr\b.*?</tr>", re.DOTALL | re.IGNORECASE)
_CELL = re.compile(r"<t[dh]\b([^>]*)>(.*?)</t[dh]>", re.DOTALL | re.IGNORECASE)
_SPAN = re.compile(r"colspan\s*=\s*[\"']?([0-9]{1,3})", re.IGNORECASE)


def join_tables(pages: Sequence[Sequence[Block]]) -> list[list[Block]]:
    """The pages, with each table that continues on the next page written whole where it begins.

    The last table of a page and the first of the next are one when only headers and footers stand between them, and
    both have the same width and number of columns. The second table's block stays, empty.
    """
    joined = [list(page) for page in pages]
    begin: tuple[int, int] | None = None  # the table that the next page may continue
    for number, page in enumerate(joined):
        first, last = _first_table(page), _last_table(page)
        if begin is not None and first is not None:
            upper = joined[begin[0]][begin[1]]
            if (whole := _joined(upper, joined[number - 1], page[first])) is not None:
                joined[begin[0]][begin[1]] = replace(upper, text=whole)
                page[first] = replace(page[first], text="")
                if last == first:
                    continue  # the joined table may continue once more
        begin = None if last is None else (number, last)
    return joined


def _first_table(page: Sequence[Block]) -> int | None:
    for i, block in enumerate(page):
        if block.kind == "table":
            return i
        if block.label not in _MAY_PRECEDE and not _CONTINUED.search(block.text):
            return None
    return None


def _last_table(page: Sequence[Block]) -> int | None:
    for i in range(len(page) - 1, -1, -1):
        if page[i].kind == "table":
            return i
        if page[i].label not in _MAY_FOLLOW:
            return None
    return None


def _joined(upper: Block, page_before: Sequence[Block], lower: Block) -> str | None:
    """Both tables as one; None for two tables."""
    above = next((block for block in reversed(page_before) if block.kind == "table"), upper)
    if above.box is None or lower.box is None or not upper.text.endswith("</table>"):
        return None
    widths = [block.box[2] - block.box[0] for block in (above, lower) if block.box is not None]
    if abs(widths[0] - widths[1]) > _WIDTHS * max(widths):
        return None
    rows, more = _ROW.findall(upper.text), _ROW.findall(lower.text)
    if not rows or not more:
        return None
    edges = _columns(rows[-1]) == _columns(more[0]) or _columns(rows[0]) == _columns(more[0])
    if not edges and max(map(_columns, rows)) != max(map(_columns, more)):
        return None
    repeated = 0
    while repeated < min(_MOST_HEADER_ROWS, len(rows), len(more) - 1) and _same(rows[repeated], more[repeated]):
        repeated += 1
    end = upper.text.rfind("</tr>") + len("</tr>")
    return upper.text[:end] + "".join(more[repeated:]) + upper.text[end:]


def _columns(row: str) -> int:
    return sum(int(span[1]) if (span := _SPAN.search(found[1])) else 1 for found in _CELL.finditer(row))


def _same(row: str, other: str) -> bool:
    return _plain(row) == _plain(other)


def _plain(row: str) -> list[str]:
    """Texts of the cells, normalised in width of letters and blanks."""
    return ["".join(unicodedata.normalize("NFKC", found[2]).split()) for found in _CELL.finditer(row)]
