"""From logits to a token: filters, then a sampler. Pure NumPy on one row, and incremental: no filter rescans the text.

The order is that of Hugging Face's generation: repetition penalty, n-gram filter, temperature, top k, top p.

Filters and samplers work on whole rows, or on a row's candidates where the rows are on a GPU (see
``runtime.candidates``); for candidates they also say whether the rest of the row may matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from models.settings import InferenceSettings


class LogitFilter(Protocol):
    """Changes one row of logits before a token is chosen."""

    def observe(self, token: int) -> None:
        """Take note of the next token of the sequence, prompt and answer alike."""

    def apply(self, logits: np.ndarray) -> None:
        """Change the logits, shape [vocabulary], in place."""

    def apply_to(self, ids: np.ndarray, logits: np.ndarray) -> bool:
        """Change the logits of the tokens ``ids``, both [n], in place as ``apply`` does.

        Returns False when ``apply`` might raise the logit of another token.
        """


class VocabularyFilter:
    """Forbids the rows of the vocabulary that have no token (padding of the embedding table)."""

    def __init__(self, forbidden: np.ndarray) -> None:
        """forbidden : token ids, shape [n]."""
        self.forbidden = forbidden
        self._is_forbidden: np.ndarray | None = None  # by token id, up to the last forbidden id; made when needed

    def observe(self, token: int) -> None:
        """Do nothing: the forbidden tokens do not depend on the text."""

    def apply(self, logits: np.ndarray) -> None:
        logits[self.forbidden] = -np.inf

    def apply_to(self, ids: np.ndarray, logits: np.ndarray) -> bool:
        if self._is_forbidden is None:
            self._is_forbidden = np.zeros(int(self.forbidden.max()) + 2, np.bool_)
            self._is_forbidden[self.forbidden] = True
        logits[self._is_forbidden[np.minimum(ids, len(self._is_forbidden) - 1)]] = -np.inf
        return True


class RepetitionPenalty:
    """Divides positive and multiplies negative logits of every token seen (CTRL, arXiv 1909.05858)."""

    def __init__(self, penalty: float) -> None:
        self._penalty = np.float32(penalty)
        self._seen: dict[int, None] = {}
        self._ids = np.empty(0, np.int64)

    def observe(self, token: int) -> None:
        if token not in self._seen:
            self._seen[token] = None
            if len(self._seen) > len(self._ids):
                self._ids = np.resize(self._ids, max(64, 2 * len(self._ids)))
            self._ids[len(self._seen) - 1] = token

    def apply(self, logits: np.ndarray) -> None:
        ids = self._ids[: len(self._seen)]
        logits[ids] = self._penalised(logits[ids])

    def apply_to(self, ids: np.ndarray, logits: np.ndarray) -> bool:
        seen = [place for place, token in enumerate(ids.tolist()) if token in self._seen]
        logits[seen] = self._penalised(logits[seen])
        return bool(self._penalty >= 1)

    def _penalised(self, values: np.ndarray) -> np.ndarray:
        return np.where(values > 0, values / self._penalty, values * self._penalty)


class NoRepeatNgram:
    """Forbids every token that would repeat an n-gram of the sequence (or of its last ``window`` tokens).

    Whitelisted tokens are never forbidden: table cells repeat by nature. With window and whitelist this is the rule of
    DeepSeek-OCR's vLLM recipe, without both Hugging Face's ``no_repeat_ngram_size``.
    """

    def __init__(self, size: int, window: int | None = None, whitelist: Sequence[int] = ()) -> None:
        self._size, self._window, self._whitelist = size, window, frozenset(whitelist)
        self._length = 0
        self._prefix: tuple[int, ...] = ()  # the last size - 1 tokens
        # prefix -> next token -> where that n-gram last began
        self._following: defaultdict[tuple[int, ...], dict[int, int]] = defaultdict(dict)

    def observe(self, token: int) -> None:
        if len(self._prefix) == self._size - 1:
            self._following[self._prefix][token] = self._length - (self._size - 1)
            self._prefix = (*self._prefix[1:], token) if self._size > 1 else ()
        else:
            self._prefix = (*self._prefix, token)
        self._length += 1

    def apply(self, logits: np.ndarray) -> None:
        logits[self._repeating()] = -np.inf

    def apply_to(self, ids: np.ndarray, logits: np.ndarray) -> bool:
        for token in self._repeating():
            logits[ids == token] = -np.inf
        return True

    def _repeating(self) -> list[int]:
        """Tokens that would repeat an n-gram."""
        oldest = 0 if self._window is None else self._length - self._window
        following = self._following.get(self._prefix)
        if not following:
            return []
        return [token for token, begin in following.items() if begin >= oldest and token not in self._whitelist]


class Greedy:
    """The most probable token."""

    def choose(self, logits: np.ndarray) -> int:
        """The token's id. Raises ``FloatingPointError`` for a row from which nothing can be chosen."""
        token = int(logits.argmax())
        _check_largest(logits[token])
        return token

    def choose_from(self, ids: np.ndarray, logits: np.ndarray, bound: np.floating[Any]) -> int | None:
        """The best candidate, arrays [n]; None where a token outside, with a logit up to ``bound``, may be better."""
        largest = logits.max()
        return int(ids[logits == largest].min()) if largest > bound else None


class Sampler:
    """A random token after temperature, top k and top p; the same seed draws the same tokens."""

    def __init__(self, temperature: float, top_k: int | None, top_p: float, seed: int | None) -> None:
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self.random = np.random.default_rng(seed)

    def choose(self, logits: np.ndarray) -> int:
        """The token's id. Raises ``FloatingPointError`` for a row from which nothing can be chosen."""
        _check_largest(logits.max())
        return self._draw(*self.distribution(logits))

    def choose_from(self, ids: np.ndarray, logits: np.ndarray, bound: np.floating[Any]) -> int | None:
        """A token drawn among candidates, arrays [n]; None where one with a logit up to ``bound`` outside could be."""
        if self._top_k is None or self._top_k > len(ids):
            return None
        order = np.lexsort((ids, -logits))[: self._top_k]
        if not logits[order[-1]] > bound:
            return None
        return self._draw(*self._probabilities(ids[order], logits[order]))

    def _draw(self, ids: np.ndarray, probabilities: np.ndarray) -> int:
        drawn = int(np.searchsorted(np.cumsum(probabilities), self.random.random(), side="right"))
        return int(ids[min(drawn, len(ids) - 1)])

    def distribution(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that may be drawn and their probabilities, most probable first; shapes [n] and [n]."""
        count = len(logits) if self._top_k is None else min(self._top_k, len(logits))
        # A stable order gives ties to the lower id, so that a seed draws the same tokens on every platform.
        if count < len(logits):
            bound = np.partition(logits, -count)[-count]
            ids = np.flatnonzero(logits >= bound)
        else:
            ids = np.arange(len(logits))
        ids = ids[np.argsort(-logits[ids], kind="stable")][:count]
        return self._probabilities(ids, logits[ids])

    def _probabilities(self, ids: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of the tokens that top k leaves, the largest logit first."""
        scaled = logits.astype(np.float64) / self._temperature
        probabilities = np.exp(scaled - scaled[0])
        possible = np.count_nonzero(probabilities)  # a forbidden token must not be drawn through a rounding error
        ids, probabilities = ids[:possible], probabilities[:possible]
        probabilities /= probabilities.sum()
        if self._top_p < 1.0:
            # The smallest set whose probability reaches top_p: a token stays while those before it fall short.
            before = np.cumsum(probabilities) - probabilities
            kept = max(1, int(np.count_nonzero(before < self._top_p)))
            ids, probabilities = ids[:kept], probabilities[:kept] / probabilities[:kept].sum()
        return ids, probabilities


def _check_largest(logit: np.floating[Any]) -> None:
    """Raise for NaN (which sorts as the largest), for an infinity, and for a row in which every token is forbidden."""
    if not np.isfinite(logit):
        raise FloatingPointError(f"the largest of the logits is {logit}, so no token can be chosen")


def filters_for(settings: InferenceSettings, forbidden: np.ndarray) -> list[LogitFilter]:
    """The filters that a request's settings ask for, in order."""
    filters: list[LogitFilter] = [VocabularyFilter(forbidden)] if len(forbidden) else []
    if settings.repetition_penalty != 1.0:
        filters.append(RepetitionPenalty(settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        filters.append(
            NoRepeatNgram(
                settings.no_repeat_ngram_size, settings.no_repeat_ngram_window, settings.no_repeat_ngram_whitelist
            )
        )
    return filters


def sampler_for(settings: InferenceSettings) -> Greedy | Sampler:
    """``Sampler`` where the settings ask for sampling at a temperature above 0, else ``Greedy``."""
    if not settings.samples:
        return Greedy()
    return Sampler(settings.temperature, settings.top_k, settings.top_p, settings.seed)
