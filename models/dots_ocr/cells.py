"""Reads dots.ocr's layout, a JSON list of cells, while it grows, and repairs what can be repaired.

Answers break off, repeat themselves, or omit a bracket or a backslash. A cell is one JSON object; whole cells are kept
in order, and ``Cells.salvaged`` says that something was not well formed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MOST_CELLS = 10_000  # cells of one page; a page has hundreds
_DEEPEST = 3  # depth of objects inside a cell

_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\{]')
_BEGINS = re.compile(r'\{\s*"bbox"')
_MAY_BEGIN = re.compile(r'\{\s*(?:"(?:b(?:b(?:ox?)?)?)?)?\Z')
# Follows the quote that ends a string; any other quote belongs to the text, and lacks its backslash.
_AFTER_KEY = re.compile(r"\s*:")
_AFTER_VALUE = re.compile(r'\s*(?:[}\]]|,\s*["\d\[{-])')
_MAY_FOLLOW = re.compile(r"\s*,?\s*\Z")

_ESCAPES = re.compile(r'\\(?:["\\/]|u[0-9a-fA-F]{4}|.)?', re.DOTALL)
# Commands of LaTeX that begin like JSON's tab, carriage return and line end.
_COMMAND = re.compile(
    r"\\(?:t(?:imes|ext|heta|au|ilde|o|op|an|anh|riangle|frac|extbf|extit|extrm|herefore)|"
    r"r(?:ho|ight|ightarrow|m|angle|floor|ceil|vert)|n(?:u|abla|eq|e|eg|ot|otin|ewline|i|ormalsize))(?![a-z])"
)
_BOX = re.compile(r'"bbox"\s*:\s*\[?((?:\s*"?-?[0-9.]+"?\s*,?){4})')
_CATEGORY = re.compile(r'"category"\s*:\s*"([^"\n]{1,40})"')
_TEXT = re.compile(r'"text"\s*:\s*"(.*)"\s*\}\s*\Z', re.DOTALL)

Corners = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Cell:
    """One part of a page.

    box : left, top, right, bottom in pixels of the picture that the model saw; None: the cell has no box.
    """

    category: str
    text: str
    box: Corners | None


@dataclass
class _Open:
    """A bracket that is not closed yet."""

    bracket: str
    start: int
    height: int = 0  # levels of objects inside, which are no cells
    holds_cells: bool = False


@dataclass
class Cells:
    """Finds the cells of a growing answer."""

    salvaged: bool = False  # something was malformed, cut off or left out
    found: int = 0
    _text: str = ""  # the answer from the first open object on
    _at: int = 0  # index up to which the text was scanned
    _open: list[_Open] = field(default_factory=list)
    _string: bool = False  # inside a string
    _key: bool = False  # the string is the name of a value
    _stray: list[int] = field(default_factory=list)  # unescaped quotes of a text
    _seen: set[Cell] = field(default_factory=set)
    _done: bool = False

    def push(self, text: str) -> list[Cell]:
        """Take the next piece; returns the cells that it completes."""
        self._text += text
        cells = self._scan()
        self._forget()
        return cells

    def finish(self) -> list[Cell]:
        """End the answer; returns the cells that only the end completes."""
        self._done = True
        cells = self._scan()
        self.salvaged = self.salvaged or bool(self._open) or self._string
        return cells

    def _scan(self) -> list[Cell]:
        cells: list[Cell] = []
        while True:
            if self.found >= MOST_CELLS:
                self._text, self._at, self._open, self.salvaged = "", 0, [], True
            place = (_INSIDE if self._string else _OUTSIDE).search(self._text, self._at)
            if place is None:
                self._at = len(self._text)
                break
            step = self._inside if self._string else self._outside
            if not step(place.start(), place[0], cells):
                self._at = place.start()  # the next piece decides what this text means
                break
        return cells

    def _inside(self, at: int, sign: str, cells: list[Cell]) -> bool:
        """Scan a character within a string; false where the next piece decides."""
        if sign == "\\":
            if at + 1 == len(self._text) and not self._done:
                return False
            self._at = at + 2
        elif sign == "{":
            if _BEGINS.match(self._text, at):  # a new cell: the one before it was never ended
                self.salvaged, self._string, self._open = True, False, []
                self._at = at
            elif not self._done and _MAY_BEGIN.match(self._text, at):
                return False
            else:
                self._at = at + 1
        else:
            follows = (_AFTER_KEY if self._key else _AFTER_VALUE).match(self._text, at + 1)
            if not follows and self._open[-1:] and self._open[-1].bracket == "[":
                follows = _AFTER_KEY.match(self._text, at + 1)  # of a box without its end
            ends = bool(follows) or (self._done and not self._text[at + 1 :].strip())
            if not ends and not self._done and _MAY_FOLLOW.match(self._text, at + 1):
                return False
            if ends:
                self._string = False
            else:
                self._stray.append(at)
            self._at = at + 1
        return True

    def _outside(self, at: int, sign: str, cells: list[Cell]) -> bool:
        """Scan a character between strings."""
        self._at = at + 1
        if sign == '"':
            self._string = True
            self._key = self._in_object and self._before(at) in ("{", ",")
        elif sign == "{" and self._in_object and self._before(at) != ":":
            if not self._done and _MAY_BEGIN.match(self._text, at):
                self._at = at
                return False
            self.salvaged = True
            if _BEGINS.match(self._text, at):  # a new cell: the one before it was never ended
                unended = self._open.pop()
                text = self._text[unended.start : at].rstrip().removesuffix(",") + "}"
                self._take(unended, self.parsed(text, unended.start), cells)
            self._open.append(_Open(sign, at))
        elif sign in "{[":
            self._open.append(_Open(sign, at))
        elif sign == "]":
            if self._open and self._open[-1].bracket == "[":
                self._open.pop()
            else:
                self.salvaged = True
        else:
            self._close(at + 1, cells)
        return True

    @property
    def _in_object(self) -> bool:
        return bool(self._open) and self._open[-1].bracket == "{"

    def _before(self, at: int) -> str:
        """The last character before a place that is no blank."""
        at -= 1
        while at >= 0 and self._text[at].isspace():
            at -= 1
        return self._text[at] if at >= 0 else ""

    def _close(self, end: int, cells: list[Cell]) -> None:
        """Close an object."""
        while self._open and self._open[-1].bracket == "[":  # of a box without its end
            self._open.pop()
            self.salvaged = True
        if not self._open:
            self.salvaged = True
            return
        closed = self._open.pop()
        readable = not closed.holds_cells and closed.height <= _DEEPEST
        self._take(closed, self.parsed(self._text[closed.start : end], closed.start) if readable else [], cells)

    def _take(self, closed: _Open, read: list[Cell], cells: list[Cell]) -> None:
        """Add an object's cells, and note the object in those around it."""
        self.salvaged = self.salvaged or (bool(self.found and read) and not self._open)  # objects without a list
        for cell in read:
            if cell in self._seen:
                self.salvaged = True  # the same cell again: a loop
                continue
            self._seen.add(cell)
            cells.append(cell)
        self.found += len(read)
        for one in reversed(self._open):
            one.holds_cells = one.holds_cells or closed.holds_cells or bool(read)
            if one.bracket == "{":
                one.height = max(one.height, closed.height + 1)
                break

    def parsed(self, text: str, start: int) -> list[Cell]:
        """The cells of an object: mostly one, several where the brackets between cells are missing."""
        strays = [at - start for at in self._stray if at >= start]
        self._stray = []
        for at in reversed(strays):
            text = f"{text[:at]}\\{text[at:]}"
        self.salvaged = self.salvaged or bool(strays)
        for repair in (None, _with_backslashes):
            pairs = _pairs(text if repair is None else repair(text))
            if pairs is not None:
                cells = [cell for group in _groups(pairs) if (cell := _cell(group)) is not None]
                self.salvaged = self.salvaged or repair is not None or len(cells) > 1
                self.salvaged = self.salvaged or any(cell.box is None for cell in cells)
                return cells
        self.salvaged = True
        return _by_fields(text)

    def _forget(self) -> None:
        """Drop the text before the first open object."""
        keep = next((one.start for one in self._open if one.bracket == "{"), self._at)
        self._text, self._at = self._text[keep:], self._at - keep
        for one in self._open:
            one.start -= keep
        self._stray = [at - keep for at in self._stray if at >= keep]


def _pairs(text: str) -> list[tuple[str, Any]] | None:
    """Names and values of an object, repeated names included; None for invalid JSON."""
    try:
        found = json.loads(text, strict=False, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    return list(found) if isinstance(found, _Pairs) else None


class _Pairs(list[tuple[str, Any]]):
    """Pairs of one JSON object."""


def _groups(pairs: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """One group of values for each box; of other repeated names, the first value."""
    groups: list[dict[str, Any]] = [{}]
    for name, value in pairs:
        if name == "bbox" and name in groups[-1]:
            groups.append({})
        groups[-1].setdefault(name, value)
    return groups


def _cell(values: dict[str, Any]) -> Cell | None:
    """The cell of values; None without a box, a category and a text."""
    box, category, text = _corners(values.get("bbox")), values.get("category"), values.get("text")
    words = _latex_of_controls(_whole(text)) if isinstance(text, str) else ""
    if box is None and not (isinstance(category, str) and words):
        return None
    return Cell(category if isinstance(category, str) else "", words, box)


def _corners(value: Any) -> Corners | None:
    """Four finite numbers, upper left before lower right; None for other values."""
    try:
        left, top, right, bottom = (float(one) for one in value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not all(map(math.isfinite, (left, top, right, bottom))):
        return None
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def _by_fields(text: str) -> list[Cell]:
    """The cell of an object that is invalid JSON, by the names of its values."""
    numbers, category, words = _BOX.search(text), _CATEGORY.search(text), _TEXT.search(text)
    if numbers is None or category is None:
        return []
    box = _corners(re.findall(r"-?[0-9]+(?:\.[0-9]+)?", numbers[1]))
    said = "" if words is None else _ESCAPES.sub(_unescaped, words[1])
    return [Cell(category[1], _whole(said), box)] if box is not None else []


def _unescaped(escape: re.Match[str]) -> str:
    try:
        found = json.loads(f'"{escape[0]}"')
    except ValueError:
        return escape[0]
    return str(found)


def _whole(text: str) -> str:
    """The text with lone halves of characters replaced, which JSON can escape and no file takes."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _with_backslashes(text: str) -> str:
    """Double the single backslashes of LaTeX in JSON's texts."""
    return _ESCAPES.sub(_doubled(text), text)


def _doubled(text: str) -> Callable[[re.Match[str]], str]:
    def doubled(escape: re.Match[str]) -> str:
        sign = escape[0][1:]
        right = len(sign) == 5 or (sign in ('"', "\\", "/", "n", "r", "t") and not _COMMAND.match(text, escape.start()))
        return escape[0] if right else f"\\{escape[0]}"

    return doubled


def _latex_of_controls(text: str) -> str:
    r"""Restore ``\frac`` and ``\beta``, read as a form feed or a backspace, which no page has."""
    return text.replace("\f", "\\f").replace("\b", "\\b")
