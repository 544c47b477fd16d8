"""The work of the engine's decode lane: chunks of prompts into the KV cache, and decode steps.

These functions know sequences and the decoder, but neither the queue nor threads. An error ends the requests that it
belongs to, and no others. A sequence's row is its index in the scheduler's ``rows``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as SequenceOf
from typing import Protocol

import numpy as np

from .candidates import Scores, certain_tokens
from .confidence import Distribution
from .failing import fail
from .features import Rows
from .sequence import Sequence
from .stop import Stop

logger = logging.getLogger(__name__)


class DecoderRunner(Protocol):
    """The decoder, as the engine uses it, without requests; see ``runtime.decoder.Decoder``."""

    @property
    def capacity(self) -> int: ...
    def embed(self, token_ids: list[int]) -> np.ndarray | Rows: ...
    def prefill_chunk(
        self, row: int, start: int, embeddings: np.ndarray | Rows, positions: np.ndarray, stop: Stop,
        window: int | None,
    ) -> np.ndarray: ...  # fmt: skip
    def prefill_together(
        self, row: int, prompts: list[np.ndarray | Rows], positions: list[np.ndarray], windows: list[int | None]
    ) -> None: ...
    def score(self, token_ids: list[int], lengths: list[int], positions: list[int]) -> Scores: ...
    def make_room(self, length: int, rows: int) -> None: ...
    def move(self, source: int, target: int, length: int) -> None: ...


def prefill(decoder: DecoderRunner, row: int, sequence: Sequence, tokens: int) -> None:
    """Feed the next tokens of a prompt; after the last of them, choose the answer's first token."""
    start, started = sequence.prefilled, time.monotonic()
    try:
        if not start:
            decoder.make_room(len(sequence.prompt_ids) + 1, rows=row)
        embeddings = sequence.prompt(decoder.embed)[start : start + tokens]
        logits = decoder.prefill_chunk(
            row, start, embeddings, sequence.prompt_positions, sequence.stop, sequence.window
        )
        sequence.clock.prefill += time.monotonic() - started
        sequence.add_chunk(tokens)
        if not sequence.prompt_left:
            sequence.accept(logits)
    except Exception as error:  # one request's failure must not stop the others
        fail([sequence], error)


def prefill_together(decoder: DecoderRunner, row: int, sequences: SequenceOf[Sequence]) -> None:
    """Feed whole prompts in one run, except the last token of each: the next step feeds that and gives its logits.

    The first prompt goes to ``row``, the others to the rows behind. A request that ends meanwhile does not end the run,
    which goes on for the other requests.
    """
    started = time.monotonic()
    try:
        decoder.make_room(max(len(one.prompt_ids) for one in sequences) + 1, rows=row)
        decoder.prefill_together(
            row,
            [one.prompt(decoder.embed)[:-1] for one in sequences],
            [one.prompt_positions for one in sequences],
            [one.window for one in sequences],
        )
    except Exception as error:  # perhaps of one prompt only: in later turns each is fed alone
        logger.warning("prompts together: %s; each alone", error)
        return
    for one in sequences:
        one.clock.prefill += time.monotonic() - started
        one.add_all_but_last()


def step(decoder: DecoderRunner, rows: SequenceOf[Sequence]) -> None:
    """Decode one token for every row that decodes.

    A row whose prompt is half in the cache may stand before rows that decode. That row is stepped with them; the step
    writes behind its tokens, and its next chunk overwrites what was written.
    """
    decoding = [sequence for sequence in rows if not sequence.prompt_left]
    if not _grow(decoder, decoding, len(rows)):
        return
    stepped = rows[: 1 + rows.index(decoding[-1])]
    try:
        scores = decoder.score(
            [row.newest for row in stepped], [row.length for row in stepped], [row.position for row in stepped]
        )
        choosers = [None if row.prompt_left else row.chooser for row in stepped]
        tokens = certain_tokens(choosers, scores.candidates)
    except Exception as error:  # the rows of this step are lost, the engine is not
        fail(decoding, error)
        return
    for row, (sequence, token) in enumerate(zip(stepped, tokens, strict=True)):
        if not sequence.prompt_left:
            _accept(sequence, scores, row, token)


def _grow(decoder: DecoderRunner, decoding: SequenceOf[Sequence], rows: int) -> bool:
    """Make room in the cache for one more token of each row. Where memory is full, only rows that need room fail."""
    short = [sequence for sequence in decoding if sequence.length >= decoder.capacity]
    if short:
        try:
            decoder.make_room(max(one.length for one in short) + 1, rows=rows)
        except Exception as error:  # whatever the device raises when its memory is full
            fail(short, error)
            return False
    return True


def _accept(sequence: Sequence, scores: Scores, row: int, token: int | None) -> None:
    """token : the row's choice where candidates were enough to choose; None: the whole row of logits is needed."""
    try:
        if token is None:
            sequence.accept(scores.whole(row))
        else:
            assert scores.candidates is not None  # the token is one of the candidates
            sequence.accept_token(token, Distribution.of_candidates(scores.candidates, row))
    except Exception as error:  # a filter or sampler of this row only
        fail([sequence], error)
