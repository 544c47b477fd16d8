"""Several GPUs as one: an engine on each, and every request to the one that has the least to do."""

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
    """What a model needs of an engine, of several; see ``runtime.engine.Engine``.

    A request stays with the engine that it was given to. Engines have the same model and the same slots, so the one
    with the fewest requests is the one that will have a row free first.
    """

    def __init__(self, engines: SequenceOf[Engine]) -> None:
        self.engines = list(engines)
        self._lock = threading.Lock()  # of two requests at once, each counts for the other

    def submit(self, sequence: Sequence) -> None:
        """See ``Engine.submit``: refused when every engine's queue is full."""
        with self._lock:
            alive = [engine for engine in self.engines if engine.alive] or self.engines
            min(alive, key=lambda engine: engine.queue_depth + engine.active).submit(sequence)

    def drain(self, timeout: float | None = None) -> bool:
        """See ``Engine.drain``; the time is for all of them together."""
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
        """See ``Engine.paused``: all of them at once."""
        with ExitStack() as paused:
            for engine in self.engines:
                paused.enter_context(engine.paused())
            yield

    @property
    def alive(self) -> bool:
        """Whether every engine takes requests: a model of which one has failed is replaced as a whole."""
        return all(engine.alive for engine in self.engines)

    @property
    def queue_depth(self) -> int:
        """Requests for which nothing has been done yet."""
        return sum(engine.queue_depth for engine in self.engines)

    @property
    def active(self) -> int:
        """Requests being encoded, prefilled or decoded."""
        return sum(engine.active for engine in self.engines)

    @property
    def loads(self) -> list[EngineLoad]:
        """What each engine has to do."""
        return [load for engine in self.engines for load in engine.loads]
