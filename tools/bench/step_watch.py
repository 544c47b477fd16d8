"""How much of the engine's time is spent outside of ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from runtime.candidates import Scores
from runtime.decoder import Decoder


class StepWatch:
    """Times the engine's turns, and how much of each is spent inside ONNX Runtime.

    A turn lasts from the beginning of a decode step to the beginning of the next, with all that happens in between.
    """

    def __init__(self, decoder: Decoder) -> None:
        """Call this before the decoder runs anything."""
        self._turns: list[tuple[int, float, float]] = []  # rows, when the step began, seconds inside until then
        self._inside = 0.0
        decoder.wrap_sessions(lambda session: _Timed(session, self))
        self._score = decoder.score
        decoder.score = self.score  # type: ignore[method-assign]  # to see when each step begins

    def start(self) -> None:
        """Forget what was timed."""
        self._turns.clear()

    def score(self, token_ids: Sequence[int], lengths: Sequence[int], positions: Sequence[int] | None = None) -> Scores:
        """Called in place of ``Decoder.score``."""
        self._turns.append((len(token_ids), time.perf_counter(), self._inside))
        return self._score(token_ids, lengths, positions)

    def inside(self, seconds: float) -> None:
        """Add the seconds of one run of a session."""
        self._inside += seconds

    def share(self, rows: int) -> dict[str, float]:
        """Over all turns that began and ended with so many rows, but for the first, in which bindings are made."""
        turns = [
            (after - before, used_after - used_before)
            for (now, before, used_before), (then, after, used_after) in pairwise(self._turns)
            if now == then == rows
        ][1:]
        whole, inside = (sum(column) for column in zip(*turns, strict=True))
        return {
            "% outside ONNX Runtime": 100 * (1 - inside / whole),
            "ms outside": 1000 * (whole - inside) / len(turns),
            "ms per step": 1000 * whole / len(turns),
        }


class _Timed:
    """A session that tells the watch how long each of its runs takes."""

    def __init__(self, session: Any, watch: StepWatch) -> None:
        self._session, self._watch = session, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, *arguments: Any) -> None:
        started = time.perf_counter()
        self._session.run_with_iobinding(*arguments)
        self._watch.inside(time.perf_counter() - started)
