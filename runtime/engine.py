"""The engine: one thread that owns the sessions and the KV cache, and batches all running requests.

Callers enqueue sequences and read their events. Each turn of the loop does at most one heavy piece of work (a vision
pass, or a prefill) and then one decode step for every running row, so nobody waits for somebody else's whole page.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from models.family import Feeds

from .errors import EngineClosed, QueueFull
from .sequence import Sequence

logger = logging.getLogger(__name__)


class Encoder(Protocol):
    """The vision tower, as the engine uses it."""

    def encode(self, feeds: Feeds) -> Feeds:
        """Run one vision pass."""


class DecoderRunner(Protocol):
    """The decoder, as the engine uses it; see ``runtime.decoder.Decoder``."""

    def embed(self, token_ids: list[int]) -> np.ndarray: ...
    def prefill(self, row: int, embeddings: np.ndarray, positions: np.ndarray) -> np.ndarray: ...
    def step(self, token_ids: list[int], lengths: list[int], positions: list[int]) -> np.ndarray: ...
    def move(self, source: int, target: int, length: int) -> None: ...


class Engine:
    """Continuous batching over ``slots`` rows, with a bounded queue before them."""

    def __init__(self, vision: Encoder, decoder: DecoderRunner, *, slots: int, max_queue: int) -> None:
        self._vision, self._decoder = vision, decoder
        self._slots, self._max_queue = slots, max_queue
        self._waiting: deque[Sequence] = deque()
        self._preparing: Sequence | None = None  # the one whose images and prompt are being fed
        self._running: list[Sequence] = []  # its index is its row of the KV cache
        self._changed = threading.Condition()  # guards all of the above, and is notified when any of it changes
        self._closed = False
        self._mean_seconds = 10.0  # of a request, for Retry-After
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="views")  # makes a view while another is encoded
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # Called from any thread.

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises
        ------
        QueueFull
            when all slots are taken and ``max_queue`` more sequences wait already.
        EngineClosed
            after ``close``.
        """
        with self._changed:
            if self._closed:
                raise EngineClosed("the model has been closed")
            if len(self._waiting) + self.active >= self._slots + self._max_queue:
                waits = max(1.0, self._mean_seconds * len(self._waiting) / self._slots)
                raise QueueFull(len(self._waiting), waits)
            self._waiting.append(sequence)
            self._changed.notify_all()

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until nothing is queued or running; False when ``timeout`` seconds passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or self._idle(), timeout)

    def close(self) -> None:
        """End every sequence as cancelled and stop the thread. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def queue_depth(self) -> int:
        return len(self._waiting)

    @property
    def active(self) -> int:
        return len(self._running) + (self._preparing is not None)

    # The engine thread.

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._end_overdue()
                self._prepare()
                self._decode()
        except Exception as error:  # a bug of the loop itself: let nobody wait for ever
            self._fail(self._all(), error)
        finally:
            with self._changed:
                self._closed = True
            for sequence in self._all():
                sequence.finish("cancelled")
            self._retire()
            self._ahead.shutdown()

    def _wait_for_work(self) -> bool:
        """Sleep while there is nothing to do; False when the engine is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._idle())
            if self._preparing is None and self._waiting and len(self._running) < self._slots:
                self._preparing = self._waiting.popleft()
                self._preparing.clock.taken_up = time.monotonic()
            return not self._closed

    def _end_overdue(self) -> None:
        """End what was cancelled or has passed its deadline, wherever it stands."""
        for sequence in self._all():
            if (detail := sequence.overdue()) is not None:
                sequence.finish(detail)
        self._retire()

    def _prepare(self) -> None:
        """One vision pass of the sequence being prepared or, when it has none left, its prefill."""
        sequence = self._preparing
        if sequence is None:
            return
        started = time.monotonic()
        try:
            feeds = sequence.next_pass(self._ahead.submit)
            if feeds is not None:
                sequence.add_pass(self._vision.encode(feeds))
                sequence.clock.vision += time.monotonic() - started
                return
            embeddings = sequence.embeddings(self._decoder.embed(sequence.prompt_ids))
            logits = self._decoder.prefill(len(self._running), embeddings, sequence.prompt_positions)
            sequence.clock.prefill = time.monotonic() - started
            sequence.accept(logits)
        except Exception as error:  # one request's failure must not stop the others
            self._fail([sequence], error)
        with self._changed:
            self._preparing = None
            self._running.append(sequence)
        self._retire()

    def _decode(self) -> None:
        """One step for all running rows."""
        rows = self._running
        if not rows:
            return
        try:
            logits = self._decoder.step(
                [row.tokens[-1] for row in rows], [row.length for row in rows], [row.position for row in rows]
            )
        except Exception as error:  # the rows of this step are lost, the engine is not
            self._fail(rows, error)
        else:
            for row, sequence in enumerate(rows):
                self._accept(sequence, logits[row])
        self._retire()

    def _accept(self, sequence: Sequence, logits: np.ndarray) -> None:
        try:
            sequence.accept(logits)
        except Exception as error:  # a filter or sampler of this row only
            self._fail([sequence], error)

    def _fail(self, sequences: list[Sequence], error: Exception) -> None:
        # The message names no user data: exceptions here come from ONNX Runtime and NumPy, which know shapes only.
        logger.error("a request failed in the engine", exc_info=error)
        for sequence in sequences:
            sequence.finish("error", f"{type(error).__name__}: {error}")

    def _retire(self) -> None:
        """Drop finished sequences; the last row's cache moves into each gap, so that the rows in use stay the first."""
        with self._changed:
            self._waiting = deque(sequence for sequence in self._waiting if not sequence.finished)
            if self._preparing is not None and self._preparing.finished:
                self._preparing = None
            for row in reversed(range(len(self._running))):
                if not self._running[row].finished:
                    continue
                self._note_duration(self._running[row])
                last = len(self._running) - 1
                if row < last:
                    self._decoder.move(last, row, self._running[last].length)
                    self._running[row] = self._running[last]
                self._running.pop()
            self._changed.notify_all()

    def _note_duration(self, sequence: Sequence) -> None:
        if sequence.clock.taken_up is not None:
            self._mean_seconds += 0.2 * (time.monotonic() - sequence.clock.taken_up - self._mean_seconds)

    def _all(self) -> list[Sequence]:
        with self._changed:
            preparing = [] if self._preparing is None else [self._preparing]
            return [*self._waiting, *preparing, *self._running]

    def _idle(self) -> bool:
        return not (self._waiting or self._preparing or self._running)
