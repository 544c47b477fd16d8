"""Worker processes that draw pages: a few that are kept, watched while they work, and replaced when they are killed.

A page of a few kilobytes can draw for ever or take all memory, in a library that cannot be interrupted; but a process
can be killed. A worker is started as a program of its own (no fork, no pickling), without secrets in its environment.
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

WATCH_SECONDS = 0.05  # seconds between two looks at work in flight
CLOSE_SECONDS = 1.0  # seconds for an idle worker to end by itself
ALARM_SECONDS = 5.0  # seconds after which a worker kills itself, should the parent not have done so

PROGRAM = (
    "import json, sys; memory, seconds, sys.path[:] = json.loads(sys.argv[1]); "
    "from runtime.documents.worker import main; main(memory, seconds)"
)
# Variables that a process needs to start and to find its libraries; no keys, no tokens.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "LANG", "LC_ALL")


class WorkerDied(Exception):
    """A worker process ended during a command."""


class Worker:
    """One worker process. For one thread at a time; any thread may ``kill``."""

    def __init__(self, limits: Limits) -> None:
        alarm = limits.seconds * limits.patience + ALARM_SECONDS
        start = json.dumps([limits.memory, alarm, [path or os.getcwd() for path in sys.path]])
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-W", "ignore", "-c", PROGRAM, start],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
                start_new_session=True,  # a terminal's Ctrl-C must not reach the worker
            )  # fmt: skip
        except OSError as error:
            raise RuntimeUnavailable(f"the program that draws pages cannot be started: {error}") from error
        _widen(self.process.stdout)
        self._view = psutil.Process(self.process.pid)
        self._ready = False
        self.holds: int | None = None  # the document that the worker has open
        self.tired = False
        self.used = time.monotonic()

    def ask(self, command: dict[str, Any], content: bytes = b"") -> dict[str, Any]:
        """Send a command and wait for the answer.

        Raises
        ------
        InvalidInput
            for an error in the document.
        WorkerDied
            when the process ended meanwhile, or ran out of memory.
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
            raise WorkerDied  # a wrong answer; the worker's next bytes cannot be trusted
        self.tired = bool(answer["tired"])
        image = Image.new("RGB", (width, height))
        rows = rows_of_a_strip(width)
        for top in range(0, height, rows):  # the whole page's bytes would double the memory
            size = (width, min(rows, height - top))
            image.paste(Image.frombytes("RGB", size, self._read(size[0] * size[1] * 3)), (0, top))
        dpi = None if answer["dpi"] is None else float(answer["dpi"])
        warnings = tuple(map(str, answer["warnings"]))
        return Drawn(image, warnings, bool(answer["truncated"]), dpi, float(answer["rotated"]))

    def seconds(self) -> float:
        """Seconds of processor time since the worker's start."""
        times = self._view.cpu_times()
        return float(times.user + times.system)

    def memory(self) -> int:
        """Resident bytes."""
        return int(self._view.memory_info().rss)

    def kill(self) -> None:
        """End the worker at once, from any thread."""
        self.process.kill()

    def close(self) -> None:
        """End an idle worker, or tidy up after a dead one. Idempotent."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):  # unsent bytes for a dead worker
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
    """One command in flight; the watch looks at it, and may kill the worker."""

    def __init__(self, worker: Worker, limits: Limits, stop: Stop) -> None:
        self._worker, self._limits, self._stop = worker, limits, stop
        self._lock = threading.Lock()
        self._over = False
        self._started, self._seconds = time.monotonic(), worker.seconds()
        self._rested = worker.memory()
        self.reason: str | None = None  # why the worker was killed; "" when the caller wanted an end

    def look(self) -> None:
        """Kill the worker that exceeds a limit, or whose caller wants an end."""
        with self._lock:
            if self._over or self.reason is not None:
                return
            try:
                self.reason = "" if self._stop() else self._beyond()
            except psutil.Error:  # the worker has ended by itself, which its reader sees
                return
            if self.reason is not None:
                self._worker.kill()

    def end(self) -> None:
        """Note that the worker has answered or died, and must not be killed for this command any more."""
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
    """Work exceeded a limit, which the message names."""


class Workers:
    """Up to ``count`` workers, each with one page at a time. Close them, or use this as a context manager."""

    def __init__(self, count: int, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._count = count
        self._changed = threading.Condition()  # guards all fields below
        self._idle: list[Worker] = []
        self._busy = 0
        self._working: set[_Work] = set()
        self._waiting: deque[object] = deque()
        self._numbers = itertools.count()
        self._watch: threading.Thread | None = None
        self._closed = False

    def warm(self) -> None:
        """Start a worker ahead of need; returns before the worker is ready."""
        with self._changed:
            if not self._closed and not self._idle and not self._busy:
                self._idle.append(Worker(self.limits))

    def number(self) -> int:
        """A number for a document that is opened with these workers."""
        return next(self._numbers)

    @contextlib.contextmanager
    def worker(self, document: int, stop: Stop) -> Iterator[Worker]:
        """Lend a worker for one command, if possible the worker that has this document open.

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
            keep = True  # the document is at fault; the worker is fine
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
        """Close a document that an idle worker has open."""
        with self._changed:
            for worker in self._idle:
                if worker.holds == document:
                    worker.holds = None
                    with contextlib.suppress(WorkerDied):  # whoever takes the dead worker next notices
                        worker.tell({"do": "close"})

    def close(self) -> None:
        """End all workers; pages in flight end with ``Stopped``. Idempotent."""
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
        """Wait for a free worker; callers are served in the order of arrival."""
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
        """An idle worker with this document, else one without, else a new one, else the least recently used."""
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
        """Watch the work in flight, on a thread of its own."""
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
            # The watch may have killed the worker after its answer, as the caller wanted an end just then.
            killed = work is not None and work.reason is not None
            keep = keep and not killed and not worker.tired and not self._closed
            if keep:
                self._idle.append(worker)
            self._busy -= 1
            self._changed.notify_all()
        if not keep:
            worker.kill()  # the worker's answer is not waited for any more
            worker.close()
            with contextlib.suppress(RuntimeUnavailable):  # the next caller gets the error
                self.warm()


def _widen(pipe: IO[bytes] | None) -> None:
    """Let the pipe hold a strip of pixels: with the usual 64 KiB the two processes wait on each other."""
    try:
        import fcntl

        assert pipe is not None
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, STRIP_BYTES)
    except (ImportError, AttributeError, OSError):  # Windows; macOS; a user with many pipes
        return
