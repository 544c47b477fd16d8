"""Endless repetition at the end of an answer, which some models fall into: taken off while the text streams by."""

from __future__ import annotations

import numpy as np

from .otsl import OTSL_TOKENS

MOST_REPEATS = 50
MOST_REPEATS_IN_TABLES = 5000  # a large table with empty cells repeats itself rightly

MOST_HELD = 100_000  # characters of a repetition that are kept in case that other text follows

_BLOCK = 16  # characters between two looks for a repetition
_LONGEST_TOKEN = max(map(len, OTSL_TOKENS))


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
            begins = max(self._tail.rfind(token) for token in OTSL_TOKENS)
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
