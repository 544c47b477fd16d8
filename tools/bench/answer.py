"""Long answers of models whose answers look back through a window: every token is decoded, and timed on the way.

Each export is measured with its window and with full attention, in two processes and in turns. Once the window is full,
speed and memory stay the same; with full attention they go on changing.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import psutil

from models.manifest import Manifest
from runtime.kv_cache import kept

from .ours import Ours
from .plan import Case, Kind, Plan


class FullAttention(Ours):
    """An export with a window, asked for answers that see all of themselves."""

    def __init__(self, folder: Path, threads: int, plan: Plan) -> None:
        super().__init__(folder, threads, plan)
        self._setup["full_attention"] = True

    def name(self, kind: Kind) -> str:
        """See ``turns.Contender``."""
        return f"{super().name(kind)}, full attention"

    def can(self, case: Case) -> bool:
        """See ``turns.Contender``."""
        return case.part == "answer" and super().can(case)


class Answer:
    """See ``worker.Subject``: one answer that grows from case to case, and begins anew for a shorter one."""

    def __init__(self, folder: Path, threads: int, plan: Plan, *, full_attention: bool) -> None:
        from runtime.decoder import Decoder
        from runtime.providers import find_device

        self._sizes = Manifest.load(folder).sizes
        self._window = None if full_attention else self._sizes.window
        self._prompt, self._steps = plan.prefills[-1], plan.answer_steps
        self._decoder = Decoder(folder, Manifest.load(folder), find_device(plan.device, threads), slots=1)
        self._rng = np.random.default_rng(0)
        self._length = 0  # tokens of the answer so far; none: there is no prompt either

    def prepare(self, part: str, value: int) -> None:
        self._grow(self._steps)

    def sample(self, part: str, value: int) -> dict[str, float]:
        """The pace of the last steps up to token ``value``, what the row's cache takes then, and the process."""
        self._grow(value - self._steps)
        started, computed = time.perf_counter(), time.process_time()
        self._grow(value)
        seconds, computed = time.perf_counter() - started, time.process_time() - computed
        return {
            "tokens/s": self._steps / seconds,
            "CPU ms a token": 1e3 * computed / self._steps,  # what other load on the machine changes least
            "MB of cache": self._decoder.cache_bytes / 1e6,
            "GB resident": psutil.Process().memory_info().rss / 1e9,
        }

    def _grow(self, length: int) -> None:
        """Decode until the answer has so many tokens."""
        if length < self._length or not self._length:
            self._decoder.make_room(1, rows=0)  # the cache of an answer before this one was larger
            self._decoder.prefill(0, self._decoder.embed(self._random(self._prompt)), window=self._window)
            self._length = 0
        for token, step in zip(self._random(length - self._length), range(self._length, length), strict=True):
            self._decoder.score([token], [self._prompt + kept(step, self._window)], [self._prompt + step])
        self._length = length

    def _random(self, count: int) -> list[int]:
        """Random tokens: different tokens are routed to different experts."""
        tokens: list[int] = self._rng.integers(0, self._sizes.vocabulary, count).tolist()
        return tokens
