"""What PaddleOCR-VL is asked, and how its answers become Markdown: tables, formula delimiters, endless repetition.

A table comes as OTSL: one token before each cell, ``<nl>`` after each row. ``<fcel>`` begins a cell with text,
``<ecel>`` an empty one; ``<lcel>`` continues the cell on its left, ``<ucel>`` the one above, ``<xcel>`` both. These
tokens occur nowhere else, so a table is one whatever the prompt was.

Every filter here works on a stream: what it returns does not depend on how the text was cut.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from types import MappingProxyType
from typing import Any

import numpy as np

from models.family import IMAGE_SLOT, OutputFilter

TASKS: Mapping[str, str] = MappingProxyType(
    {
        "ocr": f"{IMAGE_SLOT}OCR:",
        "table": f"{IMAGE_SLOT}Table Recognition:",
        "formula": f"{IMAGE_SLOT}Formula Recognition:",
        "chart": f"{IMAGE_SLOT}Chart Recognition:",
    }
)
DEFAULT_TASK = "ocr"
# A row of empty cells, and rows of them, repeat by nature: n-gram blocking writes wrong cells, and to the loop guard a
# table of 20 empty columns is a loop in its ninth row, as it sees tokens and not what they mean. ``RepeatCut`` takes
# endless repetition out of the answer, and max_new_tokens bounds its time.
DEFAULTS: Mapping[str, Any] = MappingProxyType({"no_repeat_ngram_size": 0, "stop_on_loop": False})
IGNORED_SETTINGS = frozenset({"base_size", "image_size", "crop_mode", "max_tiles"})  # a page keeps its own size

MOST_REPEATS = 50
MOST_REPEATS_IN_TABLES = 5000  # a large table with empty cells repeats itself rightly

MOST_HELD = 100_000  # characters of a repetition that are kept in case that other text follows

_BLOCK = 16  # characters between two looks for a repetition

_FULL, _EMPTY, _LEFT, _UP, _CROSS, _END_OF_ROW = "<fcel>", "<ecel>", "<lcel>", "<ucel>", "<xcel>", "<nl>"
_OTSL = re.compile("(<(?:fcel|ecel|lcel|ucel|xcel|nl)>)")
_OTSL_TOKENS = (_FULL, _EMPTY, _LEFT, _UP, _CROSS, _END_OF_ROW)
_LONGEST_TOKEN = max(map(len, _OTSL_TOKENS))
_DELIMITERS = {"\\(": " $ ", "\\)": " $ ", "\\[": " $$ ", "\\]": " $$ "}


def output_filter() -> OutputFilter:
    """The filter for an answer, whatever the prompt was."""
    return _Chain(RepeatCut(), OtslTables(), FormulaDelimiters(), _Strip())


class _Chain:
    """Filters one after the other."""

    def __init__(self, *filters: OutputFilter) -> None:
        self._filters = filters

    def push(self, text: str) -> str:
        for one in self._filters:
            text = one.push(text)
        return text

    def finish(self) -> str:
        text = ""
        for one in self._filters:
            text = one.push(text) + one.finish()
        return text


class RepeatCut:
    """Takes endless repetition off the end of a text: of a piece that it repeats to its end, ``most`` stay in a row.

    A piece has up to ``longest`` characters; one with an OTSL token in it may stay ``most_in_tables`` times. A
    repetition counts when it is whole: what is left of a last one that is not stays in the text.

    What is beyond the limit is held back, and comes after all when other text follows: leaders between two words are no
    endless repetition. Only when it is longer than ``MOST_HELD`` characters is it lost even then.

    Ordinary text hardly costs anything: only while its last ``_BLOCK`` characters stand once more within ``longest``
    characters before is every character looked at.
    """

    def __init__(
        self, most: int = MOST_REPEATS, most_in_tables: int = MOST_REPEATS_IN_TABLES, longest: int = 128
    ) -> None:
        self._periods = np.arange(1, longest + 1)
        # Of a run: the first repetition is the one that the others equal.
        self._limits, self._limits_in_tables = ((count - 1) * self._periods for count in (most, most_in_tables))
        self._runs = np.zeros(longest, np.int64)  # by period: characters in a row that equal the one a period earlier
        self._recent = np.full(longest, -1, np.int64)  # code points, most recent first; -1 before the beginning
        self._tail = ""  # the end of the text, long enough to find the two above anew and to see a token in any piece
        self._may_rest = most > 2 * _BLOCK  # no run can reach its limit between two looks
        self._watching = not self._may_rest
        self._held: list[str] = []  # characters since a run went beyond its limit
        self._lost = 0  # characters before these that are not coming back

    def push(self, text: str) -> str:
        return "".join([self._block(text[at : at + _BLOCK]) for at in range(0, len(text), _BLOCK)])

    def finish(self) -> str:
        if self._held:
            self._lose(self._beyond())
        held, self._held = "".join(self._held), []
        return held

    def _block(self, text: str) -> str:
        """Up to ``_BLOCK`` characters. At rest, all runs were shorter than ``_BLOCK`` after the block before."""
        longest = len(self._periods)
        if self._watching:
            written = "".join([self._next(character) for character in text])
            self._watching = not (self._may_rest and not self._held and self._runs.max() < _BLOCK)
        else:
            written = text
            self._remember(text)
        if not self._watching and self._tail.rfind(self._tail[-_BLOCK:], -longest - _BLOCK, -1) >= 0:
            self._watching = True
            self._find_runs()
        return written

    def _remember(self, text: str) -> None:
        self._tail = (self._tail + text)[-len(self._periods) - 2 * _BLOCK :]

    def _find_runs(self) -> None:
        """Work out the state after ``_tail``, in which every run is shorter than two blocks."""
        codes = np.full(len(self._recent) + 2 * _BLOCK, -1, np.int64)
        codes[len(codes) - len(self._tail) :] = [ord(character) for character in self._tail]
        backwards = codes[::-1]
        self._recent[:] = backwards[: len(self._recent)]
        newest = backwards[: 2 * _BLOCK]
        for period in self._periods:
            differs = newest != backwards[period : period + 2 * _BLOCK]
            self._runs[period - 1] = differs.argmax()

    def _next(self, character: str) -> str:
        code = ord(character)
        self._runs = (self._runs + 1) * (self._recent == code)
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = code
        self._remember(character)
        beyond = self._beyond()
        if beyond.max() <= 0:
            held, self._held, self._lost = self._held, [], 0
            return "".join(held) + character
        self._held.append(character)
        if self._lost + len(self._held) > MOST_HELD:
            self._lose(beyond)
        return ""

    def _beyond(self) -> np.ndarray:
        """By period: how many characters the run is over its limit."""
        beyond: np.ndarray = self._runs - self._limits
        if beyond.max() > 0:
            # A piece has a token, wherever one takes the piece to begin, when this much of the run's end has it whole.
            reach = self._periods + np.minimum(self._runs, _LONGEST_TOKEN - 1)
            begins = max(self._tail.rfind(token) for token in _OTSL_TOKENS)
            if begins >= 0:
                in_table = reach >= len(self._tail) - begins
                beyond = np.where(in_table, self._runs - self._limits_in_tables, beyond)
        return beyond

    def _lose(self, beyond: np.ndarray) -> None:
        """Drop the whole repetitions of the run that has most of them."""
        surplus = int((beyond - beyond % self._periods).max()) - self._lost
        if surplus > 0:
            del self._held[-surplus:]
            self._lost += surplus


@dataclass
class _Cell:
    kind: str
    text: str = ""

    @property
    def goes_up(self) -> bool:
        return self.kind in (_UP, _CROSS)


@dataclass
class OtslTables:
    """Writes OTSL as HTML, row by row: a row is certain when the one after it continues none of its cells."""

    _held: str = ""  # what may be the beginning of a token
    _gap: str = ""  # blanks after a row: nothing between two rows, text after the last
    _rows: list[list[_Cell]] = field(default_factory=list)  # whole, not written yet
    _row: list[_Cell] = field(default_factory=list)  # the one that is being read
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
                pieces.append(self._end_row() if in_table else "\n")  # words on its two sides stay two
            elif piece in _OTSL_TOKENS:
                self._gap = ""
                self._row.append(_Cell(piece))
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
        """The rest of the table and its end, when there is one."""
        written = self._write()
        if self._open:
            self._open = False
            written += "</table>"
        return written

    def _write(self) -> str:
        """The rows that are held."""
        rows, self._rows = self._rows, []
        if not rows:
            return ""
        start = "" if self._open else "<table>"
        self._open = True
        return start + _html_rows(rows)


def _html_rows(rows: Sequence[Sequence[_Cell]]) -> str:
    """Rows that continue no cell from outside. A continuation of nothing becomes an empty cell."""
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


def _span(rows: Sequence[Sequence[_Cell]], r: int, c: int, covered: set[tuple[int, int]]) -> tuple[int, int]:
    """Height and width of the cell that begins at row ``r``, column ``c``: a rectangle of its continuations."""

    def continues(i: int, j: int) -> bool:
        return (
            j < len(rows[i])
            and rows[i][j].kind in ((_LEFT, _CROSS) if i == r else (_UP, _CROSS) if j == c else (_LEFT, _UP, _CROSS))
            and not rows[i][j].text.strip()  # rather a cell of its own than a lost text
            and (i, j) not in covered
        )

    width = 1 + sum(1 for _ in takewhile(lambda j: continues(r, j), range(c + 1, len(rows[r]))))
    below = takewhile(lambda i: all(continues(i, j) for j in range(c, c + width)), range(r + 1, len(rows)))
    return 1 + sum(1 for _ in below), width


def _beginning_of_token(text: str) -> int:
    """Length of the longest end of the text with which an OTSL token begins."""
    begin = text.rfind("<")
    end = text[begin:] if begin >= 0 else ""
    return len(end) if any(token.startswith(end) and token != end for token in _OTSL_TOKENS) else 0


@dataclass
class FormulaDelimiters:
    r"""``\(`` and ``\)`` become `` $ ``, ``\[`` and ``\]`` `` $$ ``; LaTeX's line break ``\\`` stays."""

    _held: str = ""  # a backslash at the end

    def push(self, text: str) -> str:
        text = self._held + text
        backslashes = len(text) - len(text.rstrip("\\"))
        keep = len(text) - backslashes % 2
        self._held = text[keep:]
        return re.sub(r"\\.", lambda pair: _DELIMITERS.get(pair[0], pair[0]), text[:keep], flags=re.DOTALL)

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


@dataclass
class _Strip:
    """Takes the blanks around the text away that the other filters have put there."""

    _held: str = ""  # blanks at the end
    _started: bool = False

    def push(self, text: str) -> str:
        text = self._held + text
        if not self._started:
            text = text.lstrip()
        keep = len(text.rstrip())
        self._held = text[keep:]
        self._started = self._started or keep > 0
        return text[:keep]

    def finish(self) -> str:
        self._held = ""
        return ""
