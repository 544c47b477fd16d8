"""Endless repetition at the end of an answer, which some models fall into: taken off while the text streams by."""

from __future__ import annotations

import re

import numpy as np

from .otsl import OTSL_TOKENS

MOST_REPEATS = 50
MOST_REPEATS_IN_TABLES = 5000  # a large table with empty cells repeats itself rightly

MOST_HELD = 100_000  # characters of a repetition that are kept in case that other text follows

_BLOCK = 16  # characters between two looks for a repetition
_LONGEST_TOKEN = max(map(len, OTSL_TOKENS))
_TOKENS = re.compile("|".join(map(re.escape, OTSL_TOKENS)))


class RepeatCut:
    """Takes endless repetition off the end of a text: of a piece that it repeats to its end, ``most`` stay in a row.

    A piece has up to ``longest`` characters; one with an OTSL token in it may stay ``most_in_tables`` times. A
    repetition counts when it is whole: what is left of a last one that is not stays in the text.

    What is beyond the limit is held back, and comes after all when other text follows: leaders between two words are no
    endless repetition. Only when it is longer than ``MOST_HELD`` characters is it lost even then.

    Ordinary text hardly costs anything: only while its last ``_BLOCK`` characters stand once more within ``longest``
    characters before is every character looked at, those of a block together.
    """

    def __init__(
        self, most: int = MOST_REPEATS, most_in_tables: int = MOST_REPEATS_IN_TABLES, longest: int = 128
    ) -> None:
        self._periods = np.arange(1, longest + 1)
        # Of a run: the first repetition is the one that the others equal.
        self._limits, self._limits_in_tables = ((count - 1) * self._periods for count in (most, most_in_tables))
        self._runs = np.zeros(longest, np.int64)  # by period: characters in a row that equal the one a period earlier
        self._recent = np.full(longest, -1, np.int64)  # the last code points; -1 before the beginning
        self._numbers = np.arange(1, _BLOCK + 1)[:, None]  # of a block's characters
        self._earlier = longest + self._numbers - 1 - self._periods  # where those are that they are compared with
        self._tail = ""  # the end of the text, long enough to find the two above anew and to see a token in any piece
        self._may_rest = most > 2 * _BLOCK  # no run can reach its limit between two looks
        self._watching = not self._may_rest
        self._pending = ""  # what is no whole block yet, while every character is looked at
        self._held: list[str] = []  # characters since a run went beyond its limit
        self._lost = 0  # characters before these that are not coming back

    def push(self, text: str) -> str:
        text = self._pending + text
        written, at = [], 0
        while at < len(text) and (not self._watching or len(text) - at >= _BLOCK):
            written.append(self._block(text[at : at + _BLOCK]))
            at += _BLOCK
        self._pending = text[at:]
        return "".join(written)

    def finish(self) -> str:
        written = self._block(self._pending) if self._pending else ""
        if self._held:
            self._lose(self._beyond(self._runs[None], "")[0])
        held, self._held, self._pending = "".join(self._held), [], ""
        return written + held

    def _block(self, text: str) -> str:
        """Up to ``_BLOCK`` characters. At rest, all runs were shorter than ``_BLOCK`` after the block before."""
        longest = len(self._periods)
        if self._watching:
            written = self._watch(text)
            self._watching = not (self._may_rest and not self._held and self._runs.max() < _BLOCK)
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
        """What is written of a block of characters; the rest of them is held, and what was held may come."""
        codes = np.concatenate([self._recent, _codes(text)])
        numbers = self._numbers[: len(text)]
        differs = codes[len(self._recent) :, None] != codes[self._earlier[: len(text)]]
        last = np.maximum.accumulate(np.where(differs, numbers, 0), axis=0)  # that differed; 0: none in this block
        runs = numbers - last + np.where(last, 0, self._runs)  # after each character, [characters, periods]
        beyond = self._beyond(runs, text)
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

    def _beyond(self, runs: np.ndarray, text: str) -> np.ndarray:
        """By character and period: how many characters the run is over its limit.

        runs : [characters, periods]. text : the characters, behind ``_tail``; "": the one that ``_tail`` ends with.
        """
        beyond: np.ndarray = runs - self._limits
        if beyond.max() > 0:
            # A piece has a token, wherever one takes the piece to begin, when this much of the run's end has it whole.
            reach = self._periods + np.minimum(runs, _LONGEST_TOKEN - 1)
            in_table = reach >= self._since_token(text, len(runs))[:, None]
            beyond = np.where(in_table, runs - self._limits_in_tables, beyond)
        return beyond

    def _since_token(self, text: str, characters: int) -> np.ndarray:
        """How far before the end of each of the last characters the last whole token begins, [characters]."""
        seen = self._tail + text
        first = len(seen) - characters + 1
        ends = np.arange(first, len(seen) + 1)
        begins = np.full(characters, -len(seen) - 2 * len(self._periods))  # out of any reach
        for token in _TOKENS.finditer(seen):
            begins[max(0, token.end() - first) :] = token.start()
        since: np.ndarray = ends - begins
        return since

    def _lose(self, beyond: np.ndarray) -> None:
        """Drop the whole repetitions of the run that has most of them."""
        surplus = int((beyond - beyond % self._periods).max()) - self._lost
        if surplus > 0:
            del self._held[-surplus:]
            self._lost += surplus


def _codes(text: str) -> np.ndarray:
    """Code points, [characters]."""
    codes: np.ndarray = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    return codes
