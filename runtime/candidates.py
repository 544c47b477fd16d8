"""Choosing tokens from each row's candidates (its largest logits), where whole rows are on a GPU and slow to fetch.

64 rows of 130,000 logits are 33 MB, and take longer to fetch than to compute. So the device picks each row's
candidates, and filters and samplers work on the candidates alone. Where a token outside might win, the whole row is
fetched: the token chosen is always the one that the whole row would give. On a CPU, whole rows are at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.settings import InferenceSettings

from .logits import Greedy, LogitFilter, VocabularyFilter, filters_for, sampler_for


@dataclass(frozen=True)
class Candidates:
    """The largest logits of each row.

    ids : [rows, n] int64. logits : of the tokens ``ids``, [rows, n] float32, in any order. log_sum_exp : of whole rows,
    [rows] float32. complete : whether rows have no other tokens.
    """

    ids: np.ndarray
    logits: np.ndarray
    log_sum_exp: np.ndarray
    complete: bool = False

    @property
    def bound(self) -> np.ndarray:
        """The largest logit that a token outside the candidates may have, [rows]."""
        if self.complete:
            return np.full(len(self.logits), -np.inf, np.float32)
        least: np.ndarray = self.logits.min(axis=1)
        return least


class Scores(Protocol):
    """The logits of a decode step."""

    @property
    def candidates(self) -> Candidates | None:
        """Each row's candidates; None where whole rows are at hand."""

    def whole(self, row: int) -> np.ndarray:
        """One row of logits, [vocabulary] float32. The caller may change the array, which the next step overwrites."""

    def __len__(self) -> int:
        """Rows."""


@dataclass(frozen=True)
class HostScores:
    """Logits [rows, vocabulary] in the host's memory."""

    logits: np.ndarray
    candidates: None = None

    def whole(self, row: int) -> np.ndarray:
        """See ``Scores``."""
        logits: np.ndarray = self.logits[row]
        return logits

    def __len__(self) -> int:
        return len(self.logits)


class Chooser:
    """Chooses the tokens of one request: its filters and its sampler."""

    def __init__(self, settings: InferenceSettings, forbidden: np.ndarray) -> None:
        """forbidden : vocabulary rows without a token, [n]."""
        self.filters = filters_for(settings, forbidden)
        self.sampler = sampler_for(settings)

    def follow(self, grammar: LogitFilter) -> None:
        """Hold the answer to a grammar from here on. Called between the prompt's tokens and the answer's."""
        self.filters.append(grammar)

    def observe(self, token: int) -> None:
        """Take note of the next token of the sequence, prompt and answer alike."""
        for logit_filter in self.filters:
            logit_filter.observe(token)

    def choose(self, logits: np.ndarray) -> int:
        """Choose the next token by a whole row of logits [vocabulary], which is changed.

        Raises
        ------
        FloatingPointError
            for a row from which nothing can be chosen.
        """
        for logit_filter in self.filters:
            logit_filter.apply(logits)
        return self.sampler.choose(logits)


def certain_tokens(choosers: Sequence[Chooser | None], candidates: Candidates | None) -> list[int | None]:
    """The next token of each row, as ``Chooser.choose`` would choose; None where only the whole row can tell.

    choosers : one for each row; None for a row that gets no token.
    """
    tokens: list[int | None] = [None] * len(choosers)
    if candidates is None:
        return tokens
    ids, logits, bound = candidates.ids, candidates.logits.copy(), candidates.bound
    usable = np.isfinite(candidates.log_sum_exp)  # NaN or an infinity is left to ``choose``, which raises
    shared = _shared_vocabulary(choosers)
    if shared is not None:
        shared.apply_to(ids, logits)
    greedy = []
    for row, chooser in enumerate(choosers):
        if chooser is None or not usable[row]:
            continue
        own = chooser.filters if shared is None else chooser.filters[1:]
        if not all(one.apply_to(ids[row], logits[row]) for one in own):
            continue  # a token outside the candidates may have risen
        if isinstance(chooser.sampler, Greedy):
            greedy.append(row)
        else:
            tokens[row] = chooser.sampler.choose_from(ids[row], logits[row], bound[row])
    if greedy:
        best = logits[greedy].max(axis=1)
        # Of equal logits the lowest id wins, as in argmax.
        winners = np.where(logits[greedy] == best[:, None], ids[greedy], np.iinfo(np.int64).max).min(axis=1)
        for row, token, certain in zip(greedy, winners.tolist(), (best > bound[greedy]).tolist(), strict=True):
            tokens[row] = token if certain else None
    return tokens


def _shared_vocabulary(choosers: Sequence[Chooser | None]) -> VocabularyFilter | None:
    """The filter that forbids the same tokens in every row, to be applied to all rows at once."""
    firsts = [chooser.filters[0] if chooser.filters else None for chooser in choosers if chooser is not None]
    first = firsts[0] if firsts else None
    if not isinstance(first, VocabularyFilter):
        return None
    same = all(isinstance(one, VocabularyFilter) and one.forbidden is first.forbidden for one in firsts)
    return first if same else None
