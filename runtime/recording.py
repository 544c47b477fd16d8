"""Recording a CUDA graph while other threads use the same GPU, or another one.

While one thread records, CUDA refuses unsafe calls of all other threads (allocating for a new shape is one), and the
recording fails too. So a recording waits until nothing else runs in this process, and other runs wait for the
recording. Replays run beside others.
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
        self.waiting = 0  # waiting recordings; no run begins before them, or recordings would wait for ever
        self._recording = False

    @contextmanager
    def run(self) -> Iterator[None]:
        """Let nothing be recorded within the block. One thread must not enter twice."""
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
        """Let nothing else run within the block."""
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


RECORDING = Recording()  # one for the process: CUDA refuses calls on other GPUs too
