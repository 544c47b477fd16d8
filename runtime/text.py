"""From tokens to text pieces: incremental detokenizing, stop strings, and the detection of loops."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_LONGEST_CHARACTER = 4  # bytes of a character in UTF-8, and so its most tokens
_MOST_INCOMPLETE = 16  # tokens in a row without a whole character, from which on they count as broken bytes


class TextStream:
    """Turns tokens into pieces of clean text as they come.

    Text is held back while it is part of a character, the possible beginning of a stop string, or trailing blanks: the
    joined pieces are the answer without blanks around it. Stop strings are not looked for in leading blanks. Special
    tokens are kept, since grounding needs them.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)
        self._stops = tuple(stops)
        self.incomplete: list[int] = []  # tokens since the last whole character
        self._held = ""
        self._started = False
        self.stopped = False  # a stop string was found; no text follows

    def add(self, token: int) -> str:
        """Take a token; returns the text that is certain now, perhaps empty."""
        piece = self._stream.step(self._tokenizer, token)
        if piece is not None:
            self.incomplete.clear()
            return self.release(piece)
        self.incomplete.append(token)
        return self.release(self._broken()) if len(self.incomplete) > _MOST_INCOMPLETE else ""

    def _broken(self) -> str:
        """Text of bytes that will never be a character; kept, they would be decoded anew with every token."""
        whole = self._decode(self.incomplete)
        for left in range(_LONGEST_CHARACTER, 0, -1):
            broken, rest = self.incomplete[:-left], self.incomplete[-left:]
            if (certain := self._decode(broken)) + self._decode(rest) == whole:
                self._stream = DecodeStream(skip_special_tokens=False)
                self.incomplete = rest
                for token in rest:
                    self._stream.step(self._tokenizer, token)
                return certain
        return ""

    def finish(self) -> str:
        """Text held back for a stop string that never came, or for a character that stayed incomplete."""
        certain = self.release(self._decode(self.incomplete))
        rest, self._held = self._held.rstrip(), ""
        return certain + rest

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text

    def release(self, piece: str) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        if not self._started:
            text = text.lstrip()
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            _, begin = min(found)  # the stop string that was complete first, wherever tokens end
            return text[:begin].rstrip()
        keep = len(text) - self._beginning_of_stop(text)
        keep = len(text[:keep].rstrip())
        self._held = text[keep:]
        self._started = self._started or keep > 0
        return text[:keep]

    def _beginning_of_stop(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        return max((_overlap(text, stop) for stop in self._stops), default=0)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``, but not the whole."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return len(text) - at if at >= 0 else 0


MOST_BLANK = 2000  # most tokens of empty cells in a row in a blank form: 40 rows of six columns have 560

_CELL = r"(?:</?(?:table|thead|tbody|tr|td|th)\b[^<>]*>|<(?:[felux]cel|nl)>|[|\s])"
_EMPTY_CELLS = re.compile(rf"(?:[^<>|]{{0,40}}>)?{_CELL}+(?:<[^<>|]{{0,40}})?")  # a tag may be cut at both ends


class LoopDetector:
    """Notices an answer whose tail repeats one unit over and over.

    For every period up to ``longest``, count how many tokens in a row equal the token one period earlier. An answer is
    in a loop when such a run is at least ``minimum`` tokens and ``repeats`` periods long. Some models repeat whole
    blocks of a table's rows, of hundreds of tokens (Blaizzy/mlx-vlm issue 1214). Rows of empty cells, with nothing but
    a table's marks in them, are a blank form up to ``MOST_BLANK`` tokens.
    """

    def __init__(
        self, longest: int = 512, minimum: int = 128, repeats: int = 8, decode: Callable[[list[int]], str] | None = None
    ) -> None:
        """decode : from tokens to text, to recognise blank forms; None: no form is recognised."""
        self._decode = decode
        self._recent = np.full(longest, -1, np.int64)  # most recent first
        self._runs = np.zeros(longest, np.int64)
        self._limits = np.maximum(minimum, repeats * np.arange(1, longest + 1))

    def add(self, token: int) -> bool:
        """Take the next token; true when the tail is a loop."""
        self._runs = (self._runs + 1) * (self._recent == token)
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = token
        long_enough = np.flatnonzero(self._runs >= self._limits)
        if not len(long_enough):
            return False
        shortest = int(long_enough[0])
        return bool(self._runs[shortest] >= MOST_BLANK) or not self._is_blank(self._recent[shortest::-1].tolist())

    def _is_blank(self, unit: list[int]) -> bool:
        if self._decode is None:
            return False
        text = self._decode(unit * 3)
        marked = "<" in text or ("|" in text and "\n" in text)
        return marked and _EMPTY_CELLS.fullmatch(text) is not None
