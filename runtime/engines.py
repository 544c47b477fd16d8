"""Several GPUs as one: an engine on each; a request goes to the engine with the fewest requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import ExitStack, contextmanager

from .engine import Engine
from .requests import EngineLoad
from .sequence import Sequence


class EngineGroup:
    """Several engines behind the interface of one; see ``runtime.engine.Engine``.

    A request stays with its engine. All engines have the same model and number of slots, so the engine with the fewest
    requests has a free row first.
    """

    def __init__(self, engines: SequenceOf[Engine]) -> None:
        self.engines = list(engines)
        self._lock = threading.Lock()  # requests are counted and submitted in one go

    def submit(self, sequence: Sequence) -> None:
        """See ``Engine.submit``: refused when every engine's queue is full."""
        with self._lock:
            alive = [engine for engine in self.engines if engine.alive] or self.engines
            min(alive, key=lambda engine: engine.queue_depth + engine.active).submit(sequence)

    def drain(self, timeout: float | None = None) -> bool:
        """See ``Engine.drain``; ``timeout`` is for all engines together."""
        end = None if timeout is None else time.monotonic() + timeout
        return all(engine.drain(None if end is None else max(0.0, end - time.monotonic())) for engine in self.engines)

    def close(self, *, wait: bool = True) -> None:
        """See ``Engine.close``."""
        for engine in self.engines:
            engine.close(wait=False)
        if wait:
            for engine in self.engines:
                engine.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """See ``Engine.paused``: all engines at once."""
        with ExitStack() as paused:
            for engine in self.engines:
                paused.enter_context(engine.paused())
            yield

    @property
    def alive(self) -> bool:
        """Whether every engine takes requests: when one has failed, the whole model is replaced."""
        return all(engine.alive for engine in self.engines)

    @property
    def queue_depth(self) -> int:
        """Requests that no engine has begun."""
        return sum(engine.queue_depth for engine in self.engines)

    @property
    def active(self) -> int:
        """Requests being encoded, prefilled or decoded."""
        return sum(engine.active for engine in self.engines)

    @property
    def loads(self) -> list[EngineLoad]:
        """The load of each engine."""
        return [load for engine in self.engines for load in engine.loads]
