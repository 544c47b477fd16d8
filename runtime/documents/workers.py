"""Worker processes that draw pages: a few that are kept, watched while they work, and replaced when they are killed.

A page of a few kilobytes can draw for ever or take all memory, in a library that cannot be interrupted; a process can
be. A worker is started as a program of its own (no fork, no pickling), with an environment that holds no secrets.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import IO, Any, Self

import psutil
from PIL import Image

from models.model_errors import InvalidInput
from models.turned import Orient
from runtime.runtime_errors import RuntimeUnavailable

from .drawn import Drawn
from .limits import Limits, Stop, Stopped, TooManyPixels
from .strips import STRIP_BYTES, rows_of_a_strip

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.05  # how often work that is going on is looked at
CLOSE_SECONDS = 1.0  # for an idle worker to end by itself
ALARM_SECONDS = 5.0  # after the time that a parent would kill a worker, it kills itself

PROGRAM = (
    "import json, sys; memory, seconds, sys.path[:] = json.loads(sys.argv[1]); "
    "from runtime.documents.worker import main; main(memory, seconds)"
)
# What a process needs to start and to find its libraries; keys and tokens are not among it.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "LANG", "LC_ALL")


class WorkerDied(Exception):
    """A worker ended in the middle of its work."""


class Worker:
    """One process. For one thread at a time, but for ``kill``."""

    def __init__(self, limits: Limits) -> None:
        alarm = limits.seconds * limits.patience + ALARM_SECONDS
        start = json.dumps([limits.memory, alarm, [path or os.getcwd() for path in sys.path]])
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-W", "ignore", "-c", PROGRAM, start],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
                start_new_session=True,  # a terminal's Ctrl-C is not for it
            )  # fmt: skip
        except OSError as error:
            raise RuntimeUnavailable(f"the program that draws pages cannot be started: {error}") from error
        _widen(self.process.stdout)
        self._view = psutil.Process(self.process.pid)
        self._ready = False
        self.holds: int | None = None  # the document that it has open
        self.tired = False
        self.used = time.monotonic()

    def ask(self, command: dict[str, Any], content: bytes = b"") -> dict[str, Any]:
        """Send a command, wait for the answer.

        Raises
        ------
        InvalidInput
            for what is wrong with the document.
        WorkerDied
            when the process ended meanwhile, or has too little memory for this.
        """
        if not self._ready:
            self._ready = bool(self._answer()["ready"])
        self.tell(command, content)
        answer = self._answer()
        if "error" in answer:
            if answer["error"] is None:
                raise WorkerDied("memory")
            if "traceback" in answer:
                log.error("a worker failed on a document:\n%s", answer["traceback"])
            raise (TooManyPixels if answer.get("too_many_pixels") else InvalidInput)(answer["error"])
        return answer

    def tell(self, command: dict[str, Any], content: bytes = b"") -> None:
        """Send a command that has no answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({**command, "bytes": len(content)}).encode() + b"\n")
            self.process.stdin.write(content)
            self.process.stdin.flush()
        except OSError as error:
            raise WorkerDied from error

    def draw(self, page: int, max_pixels: int, orient: Orient) -> Drawn:
        """Draw a page of the document that is open. Raises as ``ask``."""
        answer = self.ask({"do": "draw", "page": page, "orient": orient})
        width, height = int(answer["width"]), int(answer["height"])
        if not (min(width, height) > 0 and width * height <= max_pixels):
            raise WorkerDied  # it does not do what it is asked; its next bytes are not to be trusted
        self.tired = bool(answer["tired"])
        image = Image.new("RGB", (width, height))
        rows = rows_of_a_strip(width)
        for top in range(0, height, rows):  # in strips: the whole page's bytes beside its picture would be too much
            size = (width, min(rows, height - top))
            image.paste(Image.frombytes("RGB", size, self._read(size[0] * size[1] * 3)), (0, top))
        return Drawn(image, tuple(map(str, answer["warnings"])), bool(answer["truncated"]), float(answer["rotated"]))

    def seconds(self) -> float:
        """Of processor time since its start."""
        times = self._view.cpu_times()
        return float(times.user + times.system)

    def memory(self) -> int:
        """Resident bytes."""
        return int(self._view.memory_info().rss)

    def kill(self) -> None:
        """End it at once, whatever it does. Any thread may."""
        self.process.kill()

    def close(self) -> None:
        """End it when it is idle; a dead one is tidied up. Idempotent."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):  # what was not sent to a dead one
            self.process.stdin.close()
        try:
            self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise WorkerDied
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _read(self, size: int) -> bytes:
        assert self.process.stdout is not None
        data = self.process.stdout.read(size)
        if len(data) < size:
            raise WorkerDied
        return data


class _Work:
    """One command that a worker carries out: looked at by the watch, which may kill the worker."""

    def __init__(self, worker: Worker, limits: Limits, stop: Stop) -> None:
        self._worker, self._limits, self._stop = worker, limits, stop
        self._lock = threading.Lock()
        self._over = False
        self._started, self._seconds = time.monotonic(), worker.seconds()
        self._rested = worker.memory()
        self.reason: str | None = None  # why the worker was killed; "" when the caller wanted an end

    def look(self) -> None:
        """Kill the worker when there is a reason."""
        with self._lock:
            if self._over or self.reason is not None:
                return
            try:
                self.reason = "" if self._stop() else self._beyond()
            except psutil.Error:  # it has ended by itself, which its reader sees
                return
            if self.reason is not None:
                self._worker.kill()

    def end(self) -> None:
        """The worker has answered, or died: it is not to be killed for this any more."""
        with self._lock:
            self._over = True

    def _beyond(self) -> str | None:
        limits = self._limits
        if self._worker.seconds() - self._seconds > limits.seconds:
            return f"it took more than {limits.seconds:g} s"
        if (passed := time.monotonic() - self._started) > limits.seconds * limits.patience:
            return f"it was not done after {passed:.0f} s"
        if self._worker.memory() - self._rested > limits.memory:
            return limits.too_much_memory
        return None


class Killed(Exception):
    """Work went beyond the limits; the message says beyond which."""


class Workers:
    """Up to ``count`` workers, each with one page at a time. Close it, or use it as a context manager."""

    def __init__(self, count: int, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._count = count
        self._changed = threading.Condition()  # guards all below
        self._idle: list[Worker] = []
        self._busy = 0
        self._working: set[_Work] = set()
        self._waiting: deque[object] = deque()
        self._numbers = itertools.count()
        self._watch: threading.Thread | None = None
        self._closed = False

    def warm(self) -> None:
        """Start a worker before anybody needs one; returns before it is ready."""
        with self._changed:
            if not self._closed and not self._idle and not self._busy:
                self._idle.append(Worker(self.limits))

    def number(self) -> int:
        """A name for a document that is opened with these workers."""
        return next(self._numbers)

    @contextlib.contextmanager
    def worker(self, document: int, stop: Stop) -> Iterator[Worker]:
        """A worker to oneself, if possible the one that has this document open. The block is one piece of work.

        Raises
        ------
        Stopped
            when ``stop`` turned true, before the block or inside it.
        Killed
            when the worker was killed inside the block, or died there.
        """
        worker = self._take(document, stop)
        work: _Work | None = None
        keep = False
        try:
            work = self._begin(worker, stop)
            yield worker
            keep = True
        except InvalidInput:
            keep = True  # the document is at fault, and the worker has said so
            raise
        except (WorkerDied, psutil.Error) as error:
            reason = work.reason if work is not None else None
            if reason == "":
                raise Stopped from None
            if str(error) == "memory":
                reason = self.limits.too_much_memory
            raise Killed(reason or "the program that draws it crashed, or ran out of memory") from None
        finally:
            self._give_back(worker, work, keep)

    def forget(self, document: int) -> None:
        """Let go of a document that an idle worker has open."""
        with self._changed:
            for worker in self._idle:
                if worker.holds == document:
                    worker.holds = None
                    with contextlib.suppress(WorkerDied):  # the next to take it finds out
                        worker.tell({"do": "close"})

    def close(self) -> None:
        """End all workers; what is being drawn ends with ``Stopped``. Idempotent."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for worker in idle:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, document: int, stop: Stop) -> Worker:
        """Whoever came first is served first."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while True:
                    if self._closed or stop():
                        raise Stopped
                    if self._waiting[0] is ticket and (worker := self._free(document)) is not None:
                        self._busy += 1
                        return worker
                    self._changed.wait(WATCH_SECONDS)
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _free(self, document: int) -> Worker | None:
        """The idle worker that has the document, one that has none, a new one, or that which was used longest ago."""
        best = max(
            self._idle, key=lambda worker: (worker.holds == document, worker.holds is None, -worker.used), default=None
        )
        full = self._all >= self._count
        if best is not None and (full or best.holds in (document, None)):
            self._idle.remove(best)
            return best
        return None if full else Worker(self.limits)

    @property
    def _all(self) -> int:
        return self._busy + len(self._idle)

    def _begin(self, worker: Worker, stop: Stop) -> _Work:
        work = _Work(worker, self.limits, lambda: self._closed or stop())
        with self._changed:
            self._working.add(work)
            if self._watch is None:
                self._watch = threading.Thread(target=self._look, name="watch", daemon=True)
                self._watch.start()
        return work

    def _look(self) -> None:
        """The watch, on a thread of its own while anything is being drawn."""
        while True:
            with self._changed:
                if not self._working:
                    self._watch = None
                    return
                working = list(self._working)
            for work in working:
                work.look()
            time.sleep(WATCH_SECONDS)

    def _give_back(self, worker: Worker, work: _Work | None, keep: bool) -> None:
        if work is not None:
            work.end()
        worker.used = time.monotonic()
        with self._changed:
            if work is not None:
                self._working.discard(work)
            # The watch may have ended the worker between its answer and here, since the caller wanted an end just then.
            killed = work is not None and work.reason is not None
            keep = keep and not killed and not worker.tired and not self._closed
            if keep:
                self._idle.append(worker)
            self._busy -= 1
            self._changed.notify_all()
        if not keep:
            worker.kill()  # what it would answer is not asked for any more
            worker.close()
            with contextlib.suppress(RuntimeUnavailable):  # whoever needs one is told
                self.warm()


def _widen(pipe: IO[bytes] | None) -> None:
    """Let a strip of pixels go through the pipe at once: with the usual 64 KiB the two processes wait on each other."""
    try:
        import fcntl

        assert pipe is not None
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, STRIP_BYTES)
    except (ImportError, AttributeError, OSError):  # Windows; macOS; a user that has many pipes already
        return
