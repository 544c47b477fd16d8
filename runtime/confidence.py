"""How sure the model was of each token (log-probabilities) and of a whole page.

The probabilities are the softmax of the raw logits, before filters, temperature, top k and top p, as OpenAI's
``logprobs`` are: a token that a filter has forced shows as an unlikely one. Called by the engine for every token; NumPy
only.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import numpy as np
from tokenizers import Tokenizer

from .candidates import Candidates

MOST_ALTERNATIVES = 20  # of one token, as in OpenAI's API


@dataclass(frozen=True)
class Distribution:
    """The model's distribution over the next token.

    logits : raw, [n] float32. log_sum_exp : of the whole vocabulary. ids : of the tokens, [n]; None: all of them.
    """

    logits: np.ndarray
    log_sum_exp: float
    ids: np.ndarray | None = None

    @classmethod
    def of_row(cls, logits: np.ndarray) -> Self:
        """From logits [vocabulary]; the caller may change the array afterwards."""
        kept = logits.copy()
        with np.errstate(all="ignore"):  # the chooser raises for a row with NaN
            largest = kept.max()
            total = np.exp(kept - largest).sum(dtype=np.float64)
            return cls(kept, float(largest + np.log(total)))

    @classmethod
    def of_candidates(cls, candidates: Candidates, row: int) -> Self:
        """From a row's candidates and the sum over the whole row."""
        return cls(candidates.logits[row], float(candidates.log_sum_exp[row]), candidates.ids[row])

    def log_probability(self, token: int) -> float:
        """Log-probability of a token among ``ids``."""
        place = token if self.ids is None else int(np.flatnonzero(self.ids == token)[0])
        return min(0.0, float(self.logits[place]) - self.log_sum_exp)

    def best(self, count: int) -> list[tuple[int, float]]:
        """The ``count`` most probable tokens with log-probabilities, best first; of equal ones the lower id."""
        ids = np.arange(len(self.logits)) if self.ids is None else self.ids
        count = min(count, len(ids))
        if not count:
            return []
        bound = np.partition(self.logits, -count)[-count]
        places = np.flatnonzero(self.logits >= bound)
        order = np.lexsort((ids[places], -self.logits[places]))[:count]
        return [(int(ids[place]), min(0.0, float(self.logits[place]) - self.log_sum_exp)) for place in places[order]]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of an answer.

    text : replacement characters where the token is part of a character. data : the token's bytes. best : the most
    probable tokens at this place, most probable first.
    """

    text: str
    data: bytes
    logprob: float
    best: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Confidence:
    """Mean and lowest probability of a page's tokens; of an empty answer, the probability of its end token."""

    mean: float
    lowest: float


@dataclass
class Tally:
    """Sums up the probabilities of a page's tokens as they come."""

    count: int = 0
    _sum: float = 0.0
    _lowest: float = 1.0
    _end: float | None = field(default=None)

    def add(self, log_probability: float) -> None:
        """One more token of the answer."""
        probability = math.exp(log_probability)
        self.count += 1
        self._sum += probability
        self._lowest = min(self._lowest, probability)

    def end(self, log_probability: float) -> None:
        """Take the end token, which counts only in an empty answer."""
        self._end = math.exp(log_probability)

    def confidence(self) -> Confidence | None:
        """Of the tokens so far; None before the first."""
        if self.count:
            return Confidence(self._sum / self.count, self._lowest)
        return None if self._end is None else Confidence(self._end, self._end)


def described(tokenizer: Tokenizer, token: int, distribution: Distribution, alternatives: int) -> TokenLogprob:
    """A token with the ``alternatives`` most probable tokens, as clients get it."""

    def told(one: int, logprob: float, best: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        data = token_bytes(tokenizer, one)
        return TokenLogprob(data.decode("utf-8", "replace"), data, logprob, best)

    best = tuple(told(*pair) for pair in distribution.best(alternatives))
    return told(token, distribution.log_probability(token), best)


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes that a token stands for; none for a row of the vocabulary without a token."""
    piece = tokenizer.id_to_token(token)
    if piece is None:
        return b""
    if "ByteLevel" in str(tokenizer.decoder) and all(letter in _alphabet() for letter in piece):
        return bytes(_alphabet()[letter] for letter in piece)
    if byte := re.fullmatch("<0x([0-9A-Fa-f]{2})>", piece):
        return bytes([int(byte[1], 16)])
    return piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


@lru_cache(maxsize=1)
def _alphabet() -> dict[str, int]:
    """Letter of a byte-level vocabulary -> byte: printable bytes stand for themselves, the others for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + number): byte for number, byte in enumerate(others)}
