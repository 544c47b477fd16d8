"""Tables as HTML, from OTSL: one token before each cell, ``<nl>`` after each row.

``<fcel>`` begins a cell with text, ``<ecel>`` an empty one; ``<lcel>`` continues the cell on its left, ``<ucel>`` the
one above, ``<xcel>`` both. These tokens occur nowhere else, so that tables are recognised whatever the prompt was.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

_FULL, _EMPTY, _LEFT, _UP, _CROSS, _END_OF_ROW = "<fcel>", "<ecel>", "<lcel>", "<ucel>", "<xcel>", "<nl>"
OTSL_TOKENS = (_FULL, _EMPTY, _LEFT, _UP, _CROSS, _END_OF_ROW)
_OTSL = re.compile("(<(?:fcel|ecel|lcel|ucel|xcel|nl)>)")


@dataclass
class OtslCell:
    kind: str
    text: str = ""

    @property
    def goes_up(self) -> bool:
        return self.kind in (_UP, _CROSS)


@dataclass
class OtslTables:
    """Writes OTSL as HTML, row by row: a row is final when the next row continues none of its cells."""

    _held: str = ""  # text that may be the beginning of a token
    _gap: str = ""  # blanks after a row: dropped between two rows, text after the last
    _rows: list[list[OtslCell]] = field(default_factory=list)  # complete rows, not written yet
    _row: list[OtslCell] = field(default_factory=list)  # the row being read
    _open: bool = False  # <table> is written, </table> is not

    def push(self, text: str) -> str:
        text = self._held + text
        keep = len(text) - _beginning_of_token(text)
        self._held = text[keep:]
        return self._read(text[:keep])

    def finish(self) -> str:
        held, self._held = self._held, ""
        return self._read(held) + self._end_row() + self._close()

    def _read(self, text: str) -> str:
        pieces = []
        for piece in _OTSL.split(text):
            if piece == _END_OF_ROW:
                in_table = self._row or self._rows or self._open
                pieces.append(self._end_row() if in_table else "\n")  # keeps words on both sides apart
            elif piece in OTSL_TOKENS:
                self._gap = ""
                self._row.append(OtslCell(piece))
            elif self._row:
                self._row[-1].text += piece
            elif not (self._rows or self._open):
                pieces.append(piece)
            elif piece.strip():
                pieces += [self._close(), self._gap, piece]
                self._gap = ""
            else:
                self._gap += piece
        return "".join(pieces)

    def _end_row(self) -> str:
        if not self._row:
            return ""
        row, self._row = self._row, []
        written = ""
        if self._rows and not any(cell.goes_up for cell in row):
            written = self._write()
        self._rows.append(row)
        return written

    def _close(self) -> str:
        """End the open table, if there is one."""
        written = self._write()
        if self._open:
            self._open = False
            written += "</table>"
        return written

    def _write(self) -> str:
        """Write the complete rows."""
        rows, self._rows = self._rows, []
        if not rows:
            return ""
        start = "" if self._open else "<table>"
        self._open = True
        return start + _html_rows(rows)


def _html_rows(rows: Sequence[Sequence[OtslCell]]) -> str:
    """HTML of rows that continue no cell from above. A continuation of nothing becomes an empty cell."""
    covered: set[tuple[int, int]] = set()
    lines = []
    for r, row in enumerate(rows):
        cells = []
        for c, cell in enumerate(row):
            if (r, c) in covered:
                continue
            height, width = _span(rows, r, c, covered) if cell.kind in (_FULL, _EMPTY) else (1, 1)
            covered.update((r + i, c + j) for i in range(height) for j in range(width))
            spans = (f' rowspan="{height}"' if height > 1 else "") + (f' colspan="{width}"' if width > 1 else "")
            cells.append(f"<td{spans}>{html.escape(cell.text.strip(), quote=False)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "".join(lines)


def _span(rows: Sequence[Sequence[OtslCell]], r: int, c: int, covered: set[tuple[int, int]]) -> tuple[int, int]:
    """Height and width of the cell that begins at row ``r``, column ``c``: a rectangle of its continuations."""

    def continues(i: int, j: int) -> bool:
        return (
            j < len(rows[i])
            and rows[i][j].kind in ((_LEFT, _CROSS) if i == r else (_UP, _CROSS) if j == c else (_LEFT, _UP, _CROSS))
            and not rows[i][j].text.strip()  # rather an extra cell than lost text
            and (i, j) not in covered
        )

    width = 1 + sum(1 for _ in takewhile(lambda j: continues(r, j), range(c + 1, len(rows[r]))))
    below = takewhile(lambda i: all(continues(i, j) for j in range(c, c + width)), range(r + 1, len(rows)))
    return 1 + sum(1 for _ in below), width


def _beginning_of_token(text: str) -> int:
    """Length of the longest end of the text with which an OTSL token begins."""
    begin = text.rfind("<")
    end = text[begin:] if begin >= 0 else ""
    return len(end) if any(token.startswith(end) and token != end for token in OTSL_TOKENS) else 0
