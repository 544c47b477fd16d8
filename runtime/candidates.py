"""Choosing tokens from the best of each row, where whole rows of logits are on a GPU and slow to fetch.

64 rows of 130,000 logits are 33 MB, and take longer to reach the host than the decoder takes to compute them. So the
device picks each row's candidates; filters and samplers work on those and say where a token outside might win, and only
such a row is fetched. What is chosen is what the whole row would give. On a CPU whole rows are there already.
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
    """The best of each row of logits.

    ids : [rows, n] int64. logits : of those tokens, [rows, n] float32, in any order.
    log_sum_exp : of whole rows, [rows] float32.
    complete : whether rows have no other tokens.
    """

    ids: np.ndarray
    logits: np.ndarray
    log_sum_exp: np.ndarray
    complete: bool = False

    @property
    def bound(self) -> np.ndarray:
        """The largest logit that a token which is no candidate may have, [rows]."""
        if self.complete:
            return np.full(len(self.logits), -np.inf, np.float32)
        least: np.ndarray = self.logits.min(axis=1)
        return least


class Scores(Protocol):
    """What a step of the decoder gives for its rows."""

    @property
    def candidates(self) -> Candidates | None:
        """The best of each row; None where whole rows are at hand."""

    def whole(self, row: int) -> np.ndarray:
        """One row of logits, [vocabulary] float32, which the caller may change; good until the next step."""

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
        """From here on, hold the answer to a grammar. Called between the prompt's tokens and the answer's."""
        self.filters.append(grammar)

    def observe(self, token: int) -> None:
        """Take note of the next token of the sequence, prompt and answer alike."""
        for logit_filter in self.filters:
            logit_filter.observe(token)

    def choose(self, logits: np.ndarray) -> int:
        """The next token by a whole row [vocabulary], which is changed.

        Raises
        ------
        FloatingPointError
            for a row from which nothing can be chosen.
        """
        for logit_filter in self.filters:
            logit_filter.apply(logits)
        return self.sampler.choose(logits)


def certain_tokens(choosers: Sequence[Chooser | None], candidates: Candidates | None) -> list[int | None]:
    """The next token of each row, as ``Chooser.choose`` would give it; None where that takes the whole row.

    choosers : one for each row; None for a row that gets no token.
    """
    tokens: list[int | None] = [None] * len(choosers)
    if candidates is None:
        return tokens
    ids, logits, bound = candidates.ids, candidates.logits.copy(), candidates.bound
    usable = np.isfinite(candidates.log_sum_exp)  # neither NaN nor an infinity in the row: else the whole one says so
    shared = _shared_vocabulary(choosers)
    if shared is not None:
        shared.apply_to(ids, logits)
    greedy = []
    for row, chooser in enumerate(choosers):
        if chooser is None or not usable[row]:
            continue
        own = chooser.filters if shared is None else chooser.filters[1:]
        if not all(one.apply_to(ids[row], logits[row]) for one in own):
            continue  # a token outside may have risen
        if isinstance(chooser.sampler, Greedy):
            greedy.append(row)
        else:
            tokens[row] = chooser.sampler.choose_from(ids[row], logits[row], bound[row])
    if greedy:
        best = logits[greedy].max(axis=1)
        # Of equal ones the lowest id, as argmax has it.
        winners = np.where(logits[greedy] == best[:, None], ids[greedy], np.iinfo(np.int64).max).min(axis=1)
        for row, token, certain in zip(greedy, winners.tolist(), (best > bound[greedy]).tolist(), strict=True):
            tokens[row] = token if certain else None
    return tokens


def _shared_vocabulary(choosers: Sequence[Chooser | None]) -> VocabularyFilter | None:
    """The filter that forbids the same tokens in every row, to be applied to all at once."""
    firsts = [chooser.filters[0] if chooser.filters else None for chooser in choosers if chooser is not None]
    first = firsts[0] if firsts else None
    if not isinstance(first, VocabularyFilter):
        return None
    same = all(isinstance(one, VocabularyFilter) and one.forbidden is first.forbidden for one in firsts)
    return first if same else None
