"""Recording a CUDA graph while other threads use the same GPU, or another one.

While one thread records, CUDA refuses calls of all others that might be unsafe, memory for a new shape among them, and
the recording fails with them. So a recording waits until nothing else runs in this process, and all else waits for it.
A recorded step that is replayed, like any other run, needs no company to be kept away.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Recording:
    """Any number of runs at once, or one recording."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._runs = 0
        self.waiting = 0  # recordings that wait: no run begins before them, or they would wait for ever
        self._recording = False

    @contextmanager
    def run(self) -> Iterator[None]:
        """For as long as the block lasts nothing is recorded. Not to be entered twice by one thread."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._recording or self.waiting))
            self._runs += 1
        try:
            yield
        finally:
            with self._changed:
                self._runs -= 1
                self._changed.notify_all()

    @contextmanager
    def record(self) -> Iterator[None]:
        """For as long as the block lasts nothing else runs."""
        with self._changed:
            self.waiting += 1
            self._changed.wait_for(lambda: not (self._recording or self._runs))
            self.waiting -= 1
            self._recording = True
        try:
            yield
        finally:
            with self._changed:
                self._recording = False
                self._changed.notify_all()


RECORDING = Recording()  # of this process: CUDA does not ask on which GPU the others work
