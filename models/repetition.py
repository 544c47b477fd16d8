"""Removes the endless repetition at an answer's end that some models fall into, from a stream or a whole text.

PaddleX's rule applies to texts from a certain length on, for tables a greater one. ``without_repetition`` is that rule;
``RepeatCut`` applies the rule to a stream, where sent text cannot be taken back.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from .otsl import OTSL_TOKENS

LEAST_TEXT = 50  # least characters of a text in which repetition is looked for
LEAST_TABLE = 5000  # the same for a text with a table, whose empty cells repeat rightly

MOST_HELD = 100_000  # characters of a repetition that are kept in case that other text follows

_SHORTEST_UNIT, _REPEATS = 8, 5  # least characters and repetitions of a unit at a line's end
_LEAST_LINE = 100  # least characters of such a line
_SHARE = 0.5  # share of the line that the repetition must exceed
_UNITS = 10  # repetitions of a short unit that are the whole text
_LINES, _LINES_SHARE = 10, 0.8  # repetitions of a line, and their share of all lines
_MANY, _MUCH = 50, 500  # repetitions and characters at the end that are too many behind any text

_BROKEN = "\ufffd"  # the replacement of a character that was cut in two
_BLOCK = 16  # characters between two looks for a repetition
_KEPT = 2 * _BLOCK  # characters of a repetition that stay at least: no run can be longer between two looks
_TOKENS = re.compile("|".join(map(re.escape, OTSL_TOKENS)))
_LONGEST_TOKEN = max(map(len, OTSL_TOKENS))


def without_repetition(text: str, least: int = LEAST_TEXT) -> str:
    """A whole answer without its endless repetition, by PaddleX's rule; short answers are unchanged.

    Of one line, the end that repeats itself goes with all its repetitions; of a line or of lines that are nothing but
    one unit, that is left. A character that was cut in two at the end does not hide a repetition.
    """
    if len(text) < least:
        return text
    stripped = text.rstrip(_BROKEN).strip()
    lines = [line.strip() for line in stripped.split("\n") if line.strip()]
    if len(lines) == 1:
        if len(stripped) > _LEAST_LINE and (begin := _repeated_end(stripped)) is not None:
            return stripped[:begin]
        period = (stripped + stripped).find(stripped, 1)
        return stripped[:period] if len(stripped) // period >= _UNITS else text
    if len(lines) < _LINES:
        return text
    line, count = Counter(lines).most_common(1)[0]
    return line if count >= _LINES and count / len(lines) >= _LINES_SHARE else text


def _repeated_end(line: str) -> int | None:
    """Where a repetition begins that makes up most of a line; None for no such repetition."""
    for size in range(len(line) // _REPEATS, _SHORTEST_UNIT - 1, -1):
        if line[-1] != line[-1 - size] or line[-size * _REPEATS : -size] != line[-size * (_REPEATS - 1) :]:
            continue
        begin = len(line) - size * _REPEATS
        while begin >= size and line[begin - size : begin] == line[-size:]:
            begin -= size
        return begin if len(line) - begin > _SHARE * len(line) else None
    return None


class RepeatCut:
    """Removes endless repetition from the end of a streamed text.

    A run is the end of a text as far as it equals what stands one unit earlier, together with that unit: whatever part
    of a unit it ends with belongs to it. Of a run that is endless two units stay, or one and ``_KEPT`` characters. Runs
    are endless in texts of ``least`` characters (``least_in_tables`` where there is an OTSL token) when

    - the text is one line, and more than half of it ``_REPEATS`` units of ``_SHORTEST_UNIT`` characters or more;
    - the text is one line of nothing but ``_UNITS`` units;
    - the text has several lines, and four fifths of it are ``_LINES`` units;
    - the run has ``_MANY`` units and ``_MUCH`` characters, whatever stands before.

    What may be cut is held back, and comes after all when other text follows: leaders between two words are no endless
    repetition. Only when it is longer than ``MOST_HELD`` characters is it lost even then. Units have up to ``longest``
    characters.

    Ordinary text hardly costs anything: only while its last ``_BLOCK`` characters stand once more within ``longest``
    characters before is every character looked at, those of a block together.
    """

    def __init__(self, least: int = LEAST_TEXT, least_in_tables: int = LEAST_TABLE, longest: int = 2048) -> None:
        self._least, self._least_in_tables = least, least_in_tables
        self._periods = np.arange(1, longest + 1)
        self._limits = np.maximum(self._periods, _KEPT)  # of a run after its first unit
        self._runs = np.zeros(longest, np.int64)  # by period: characters in a row that equal the one a period earlier
        self._recent = np.full(longest, -1, np.int64)  # the last code points; -1 before the beginning
        self._numbers = np.arange(1, _BLOCK + 1)[:, None]  # of a block's characters
        self._earlier = longest + self._numbers - 1 - self._periods  # where the characters a period earlier stand
        self._tail = ""  # the end of the text, long enough to find the two above anew
        self._watching = False
        self._pending = ""  # characters of an incomplete block, while every character is checked
        self._broken = ""  # characters cut in two at the end
        self._held: list[str] = []  # characters since a run went beyond its limit
        self._lost = 0  # characters before these that are not coming back
        self._text = _TextSoFar()

    def push(self, text: str) -> str:
        text = self._broken + text
        self._broken = text[len(text.rstrip(_BROKEN)) :]
        text = text[: len(text) - len(self._broken)]
        self._text.add(text)
        text = self._pending + text
        written, at = [], 0
        while at < len(text) and (not self._watching or len(text) - at >= _BLOCK):
            written.append(self._block(text[at : at + _BLOCK]))
            at += _BLOCK
        self._pending = text[at:]
        return "".join(written)

    def finish(self) -> str:
        written = self._block(self._pending) if self._pending else ""
        surplus = self._surplus() - self._lost if self._held else 0
        rest = self._held[: len(self._held) - surplus] if surplus > 0 else [*self._held, self._broken]
        self._held, self._pending = [], ""
        return written + "".join(rest)

    def _surplus(self) -> int:
        """Number of characters to cut from the end: of the longest endless run."""
        whole, runs = self._text, self._runs + self._periods
        if whole.length < (self._least_in_tables if whole.has_token else self._least):
            return 0
        units = runs // self._periods
        endless = (units >= _MANY) & (runs >= _MUCH)
        if whole.lines > 1:
            endless |= (units >= _LINES) & (runs >= _LINES_SHARE * whole.length)
        else:
            endless |= (units >= _UNITS) & (runs == whole.length)
            if whole.length > _LEAST_LINE:
                endless |= (self._periods >= _SHORTEST_UNIT) & (units >= _REPEATS) & (runs > _SHARE * whole.length)
        return int(np.where(endless, self._runs - self._limits, 0).max())

    def _block(self, text: str) -> str:
        """Up to ``_BLOCK`` characters. At rest, all runs were shorter than ``_BLOCK`` after the block before."""
        longest = len(self._periods)
        if self._watching:
            written = self._watch(text)
            self._watching = bool(self._held) or bool(self._runs.max() >= _BLOCK)
        else:
            written = text
        self._tail = (self._tail + text)[-longest - 2 * _BLOCK :]
        if not self._watching and self._tail.rfind(self._tail[-_BLOCK:], -longest - _BLOCK, -1) >= 0:
            self._watching = True
            self._find_runs()
        return written

    def _find_runs(self) -> None:
        """Work out the state after ``_tail``, in which every run is shorter than two blocks."""
        codes = np.full(len(self._recent) + 2 * _BLOCK, -1, np.int64)
        codes[len(codes) - len(self._tail) :] = _codes(self._tail)
        self._recent = codes[2 * _BLOCK :]
        backwards, newest = codes[::-1], np.arange(2 * _BLOCK)
        self._runs = (backwards[newest] != backwards[self._periods[:, None] + newest]).argmax(axis=1)

    def _watch(self, text: str) -> str:
        """Write what is certain of a block of characters, and hold the rest back; earlier held text may come, too."""
        codes = np.concatenate([self._recent, _codes(text)])
        numbers = self._numbers[: len(text)]
        differs = codes[len(self._recent) :, None] != codes[self._earlier[: len(text)]]
        last = np.maximum.accumulate(np.where(differs, numbers, 0), axis=0)  # that differed; 0: none in this block
        runs = numbers - last + np.where(last, 0, self._runs)  # after each character, [characters, periods]
        beyond = runs - self._limits
        self._recent, self._runs = codes[len(text) :], runs[-1]
        written = []
        for character, over, worst in zip(text, beyond, beyond.max(axis=1).tolist(), strict=True):
            self._held.append(character)
            if worst <= 0:
                written += self._held
                self._held, self._lost = [], 0
            elif self._lost + len(self._held) > MOST_HELD:
                self._lose(over)
        return "".join(written)

    def _lose(self, beyond: np.ndarray) -> None:
        """Drop the whole repetitions of the run with the most. beyond : characters of each run beyond its limit."""
        surplus = int((beyond - beyond % self._periods).max()) - self._lost
        if surplus > 0:
            del self._held[-surplus:]
            self._lost += surplus


@dataclass
class _TextSoFar:
    """Facts about the whole text so far."""

    length: int = 0
    lines: int = 1  # 1 or more than 1, blanks around the text aside
    has_token: bool = False  # of a table
    _end: str = ""  # which a token may have begun in
    _waits: bool | None = None  # a line has ended since the last letter; None: there was none yet

    def add(self, text: str) -> None:
        self.length += len(text)
        around = self._end + text
        self.has_token = self.has_token or _TOKENS.search(around) is not None
        self._end = around[1 - _LONGEST_TOKEN :]
        if letters := text.strip():
            before, after = text.split(letters)
            if "\n" in letters or (self._waits is not None and (self._waits or "\n" in before)):
                self.lines = 2
            self._waits = "\n" in after
        elif self._waits is not None:
            self._waits = self._waits or "\n" in text


def _codes(text: str) -> np.ndarray:
    """Code points, [characters]."""
    codes: np.ndarray = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    return codes
