"""The engine: all running requests in one batch, their images encoded beside it.

``runtime.scheduler`` says what runs next. Each of two lanes is a thread that asks the scheduler, runs the turn that it
gets, and asks again: one lane owns the vision session, the other (``runtime.decoding``) the decoder and its KV cache. A
third thread ends requests at their deadline, while a pass or a step may still be in flight. Callers enqueue sequences
and read their events.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

from models.family import Feeds

from .decoding import DecoderRunner, prefill, prefill_together, step
from .failing import fail
from .features import Outputs
from .requests import EngineLoad
from .runtime_errors import EngineClosed, QueueFull
from .scheduler import Chunk, State, Step, next_pass, next_turn, upcoming_pass
from .sequence import Sequence
from .stop import Stop

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_WAIT = 3600.0  # seconds; a condition takes no infinity


class Encoder(Protocol):
    """The vision tower, as the engine uses it, without requests; see ``runtime.vision.VisionTower``."""

    batch: int  # most passes to run together

    def begin(self) -> None:
        """Prepare the calling thread, which will run every pass. Called before the first pass."""

    def encode(self, feeds: Feeds, stop: Stop) -> Outputs:
        """Run one vision pass; ``stop`` ends it with an error."""

    def encode_all(self, passes: list[Feeds]) -> list[Outputs]:
        """Run several passes together."""


class Engine:
    """Continuous batching over ``slots`` rows, with a bounded queue before them.

    chunk, together : see ``scheduler.State``.
    """

    def __init__(
        self, encoder: Encoder, decoder: DecoderRunner, *, slots: int, max_queue: int, chunk: int = 1024,
        together: int = 0, device: str = "cpu",
    ) -> None:  # fmt: skip
        """device : name shown in the engine's load."""
        self._device = device
        self.encoder, self.decoder = encoder, decoder
        self._max_queue = max_queue
        self.state: State[Sequence] = State(slots, chunk, together)
        self.encoding = False  # a pass is in flight, perhaps of a request that has ended
        self._changed = threading.Condition()  # guards the state; notified when a lane may have more to do
        self._closed = False
        self._mean_seconds = 10.0  # running mean of a request's time, for Retry-After
        self._views = ThreadPoolExecutor(1, thread_name_prefix="views")  # prepares a view while another is encoded
        self._made_ahead: Sequence | None = None  # the sequence whose view was prepared last
        self._threads = [
            threading.Thread(target=self._keep, args=(lane,), name=name, daemon=True)
            for name, lane in (("decode", self._decode), ("encode", self._encode), ("deadlines", self._watch))
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)  # a thread inside a session would outlive the interpreter

    # Called from any thread.

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises
        ------
        QueueFull
            when all slots are taken and ``max_queue`` more sequences wait already.
        EngineClosed
            after ``close``, or when the engine has failed.
        """
        with self._changed:
            if self._closed:
                raise EngineClosed("the model has been closed")
            if self.queue_depth + self.active >= self.state.slots + self._max_queue:
                waits = max(1.0, self._mean_seconds * self.queue_depth / self.state.slots)
                raise QueueFull(self.queue_depth, waits)
            self.state.add(sequence)
            sequence.on_cancel = self._end_overdue
            self._changed.notify_all()

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until nothing is queued or running; False when ``timeout`` seconds passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or self._idle(), timeout)

    def close(self, *, wait: bool = True) -> None:
        """End every sequence as cancelled, those in flight too, and stop the threads. Idempotent."""
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            everybody = self._all()
        for sequence in everybody:
            sequence.finish("cancelled")
        for thread in self._threads if wait else ():
            if thread is not threading.current_thread():
                thread.join()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let no lane begin anything within the block; what a device has begun goes on.

        For a look at ``state``, and for requests that are to begin together: the pausing thread may submit, every other
        caller waits for the end of the block.
        """
        with self._changed:
            yield

    @property
    def alive(self) -> bool:
        """Whether requests are taken: neither closed nor failed."""
        return not self._closed

    @property
    def queue_depth(self) -> int:
        """Requests in the queue that the engine has not begun."""
        return sum(not one.finished and one.clock.taken_up is None for one in self.state.waiting)

    @property
    def active(self) -> int:
        """Requests being encoded, prefilled or decoded."""
        return sum(not one.finished and one.clock.taken_up is not None for one in self._all())

    @property
    def loads(self) -> list[EngineLoad]:
        """This engine's load, in a list since an ``EngineGroup`` has several."""
        return [EngineLoad(self._device, self.state.slots, self.active, self.queue_depth, self.alive)]

    # The lanes.

    def _decode(self) -> None:
        while (turn := self._next(self._next_turn)) is not None:
            if isinstance(turn, Chunk):
                self._feed(turn)
            else:
                step(self.decoder, self.state.rows)

    def _encode(self) -> None:
        self.encoder.begin()
        while (sequence := self._next(self._next_pass)) is not None:
            self._run_pass(sequence)

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                self._end_overdue()
                deadlines = (one.deadline for one in self._all() if one.deadline is not None)
                first = min(deadlines, default=float("inf"))
                self._changed.wait(min(max(0.0, first - time.monotonic()), _LONGEST_WAIT))

    def _keep(self, lane: Callable[[], None]) -> None:
        """Run a lane to its end, then end all sequences: no caller waits for a lane that has stopped."""
        try:
            lane()
        except Exception as error:  # a bug of the loop itself
            with self._changed:
                self._closed = True
                fail(self._all(), error)
        with self._changed:
            self._closed = True
            for sequence in self._all():
                sequence.finish("cancelled")
            self._changed.notify_all()
        self._views.shutdown(wait=False)

    def _next(self, choose: Callable[[], T | None]) -> T | None:
        """Wait until the lane has something to do; None when the engine is to stop."""
        with self._changed:
            while not self._closed:
                self._end_overdue()
                if (turn := choose()) is not None:
                    return turn
                self._changed.wait()
            return None

    # With the lock held.

    def _next_turn(self) -> Chunk[Sequence] | Step | None:
        self._retire()
        turn = next_turn(self.state)
        if turn is not None:
            self.state.begin_turn(turn)
        if isinstance(turn, Chunk):
            for job in turn.jobs:
                job.clock.take_up()
        return turn

    def _next_pass(self) -> Sequence | None:
        sequence = next_pass(self.state)
        if sequence is not None:
            self.state.begin_pass(sequence)
            sequence.clock.take_up()
            self.encoding = True
        return sequence

    def _retire(self) -> None:
        """Evict finished rows; the last row's cache moves into each gap, so that the rows in use stay the first."""
        rows = self.state.rows
        if not any(sequence.finished for sequence in rows):
            return
        for row in reversed(range(len(rows))):
            if not rows[row].finished:
                continue
            self._note_duration(rows[row])
            last = len(rows) - 1
            if row < last:
                self.decoder.move(last, row, rows[last].length)
                rows[row] = rows[last]
            rows.pop()
        self._changed.notify_all()

    def _note_duration(self, sequence: Sequence) -> None:
        if sequence.clock.taken_up is not None:
            self._mean_seconds += 0.2 * (time.monotonic() - sequence.clock.taken_up - self._mean_seconds)

    def _all(self) -> list[Sequence]:
        return [*self.state.waiting, *self.state.rows]

    def _idle(self) -> bool:
        return not (self.state.waiting or self.state.rows or self.encoding)

    def _end_overdue(self) -> None:
        """End sequences that were cancelled or have passed their deadline; one in the queue leaves it at once."""
        with self._changed:
            ended = False
            for sequence in self._all():
                if (detail := sequence.overdue()) is not None and not sequence.finished:
                    sequence.finish(detail)
                    ended = True
            if ended or any(sequence.finished for sequence in self.state.waiting):
                self.state.waiting = [one for one in self.state.waiting if not one.finished]
                self._changed.notify_all()

    # What the lanes do.

    def _run_pass(self, sequence: Sequence) -> None:
        """Run one vision pass, while the next pass's view is prepared."""
        started = time.monotonic()
        passes = self._gather(sequence)
        for one, outputs in self._encoded(passes):
            try:
                if isinstance(outputs, Exception):
                    raise outputs
                one.add_pass(outputs)
            except Exception as error:  # one request's failure must not stop the others
                fail([one], error)
        for one in {id(one): one for one, _ in passes}.values():
            one.clock.vision += time.monotonic() - started
        with self._changed:
            self.encoding = False
            self._changed.notify_all()

    def _gather(self, first: Sequence) -> list[tuple[Sequence, Feeds]]:
        """The request's next pass and, where the device batches passes, the passes that would follow."""
        passes: list[tuple[Sequence, Feeds]] = []
        sequence: Sequence | None = first
        while sequence is not None:
            try:
                feeds = sequence.next_pass()
                if feeds is not None:
                    passes.append((sequence, feeds))
            except Exception as error:  # a picture that cannot be prepared
                fail([sequence], error)
            sequence = self._another_pass() if len(passes) < self.encoder.batch else None
        self._make_ahead()
        return passes

    def _another_pass(self) -> Sequence | None:
        with self._changed:
            sequence = upcoming_pass(self.state)
            if sequence is not None:
                self.state.begin_pass(sequence)
                sequence.clock.take_up()
            return sequence

    def _encoded(self, passes: list[tuple[Sequence, Feeds]]) -> Iterator[tuple[Sequence, Outputs | Exception]]:
        """Each pass's outputs, or its error. When a batch of passes fails, each pass is tried alone."""
        if len(passes) > 1:
            try:
                together = self.encoder.encode_all([feeds for _, feeds in passes])
                yield from zip((sequence for sequence, _ in passes), together, strict=True)
                return
            except Exception as error:
                logger.warning("vision passes together: %s; each alone", error)
        for sequence, feeds in passes:
            try:
                yield sequence, self.encoder.encode(feeds, sequence.stop)
            except Exception as error:
                yield sequence, error

    def _make_ahead(self) -> None:
        """Start to prepare the next pass's view. One view at a time: more would only take memory."""
        with self._changed:
            upcoming = upcoming_pass(self.state)
            if upcoming is None or (self._made_ahead is not None and self._made_ahead.is_ahead):
                return
            self._made_ahead = upcoming
        upcoming.make_ahead(self._views.submit)

    def _feed(self, turn: Chunk[Sequence]) -> None:
        row = self.state.rows.index(turn.job)
        if turn.beside:
            prefill_together(self.decoder, row, turn.jobs)
        else:
            prefill(self.decoder, row, turn.job, turn.tokens)
        with self._changed:
            self._changed.notify_all()  # a pass may have waited for the prompt
