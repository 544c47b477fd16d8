"""Worker processes that the tests of one file lend each other, where workers are not what is tested.

A worker takes a quarter of a second to start, and nearly every picture that a test sends needs one.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Hashable

from runtime.documents.limits import Limits
from runtime.documents.workers import Worker, WorkerDied


class KeptWorkers:
    """Makes workers (see ``runtime.documents.workers.Worker``) of those that were closed while they were well."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[KeptWorker] = []

    def __call__(self, limits: Limits) -> Worker:
        with self._lock:
            for worker in self._idle:
                if worker.start == start_of(limits):
                    self._idle.remove(worker)
                    return worker
        return KeptWorker(limits, self)

    def keep(self, worker: KeptWorker) -> None:
        with self._lock:
            self._idle.append(worker)

    def end(self) -> None:
        """End all processes that nobody has at the moment."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()


class KeptWorker(Worker):
    """A worker whose process goes on when it is closed, without its document; killed or grown, it ends as others do."""

    def __init__(self, limits: Limits, house: KeptWorkers) -> None:
        super().__init__(limits)
        self.start, self._house, self._killed = start_of(limits), house, False

    def kill(self) -> None:
        self._killed = True
        super().kill()

    def close(self) -> None:
        if self._killed or self.tired or self.process.poll() is not None:
            self.end()
            return
        try:
            self.tell({"do": "close"})
        except WorkerDied:
            self.end()
            return
        self.holds = None
        self._house.keep(self)

    def end(self) -> None:
        super().close()


def start_of(limits: Limits) -> Hashable:
    """What a worker is started with, by which another one may be as good."""
    environment = tuple(os.environ.get(name) for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG", "LC_ALL"))
    return limits.seconds, limits.patience, limits.memory, tuple(sys.path), environment
