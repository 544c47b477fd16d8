"""Exports models on demand, one process at a time, while loaded models serve.

A request never waits for an export inside the pool, so loaded models go on serving; only a finished folder is loaded. A
client is told how far the export is, or waits (``--export-wait``). A failure is remembered for a while, so that a hub
that refuses is not asked anew for every request.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from runtime.library.export_process import END_SECONDS, ExportProcess
from runtime.library.source import ModelKey, ModelSource
from runtime.requests import TextModel
from runtime.runtime_errors import ModelUnavailable
from server.api_errors import ApiError, ClientGone, Unavailable
from server.reasons import without_paths

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2  # seconds between two looks whether a waiting request's client is still there
RETRY_SECONDS = 15.0  # seconds that a client is told to wait before it asks again
PATIENCE_SECONDS = 4 * RETRY_SECONDS  # seconds for which such a client counts as waiting
REMEMBER_SECONDS = 120.0  # seconds for which a failure is repeated instead of a new try


@dataclass(eq=False)
class _Export:
    key: ModelKey
    since: float = field(default_factory=time.monotonic)
    process: ExportProcess | None = None  # None: the export waits for its turn
    waiting: int = 0  # number of waiting requests
    wanted_until: float = 0.0  # until when clients that were told to ask again count; infinity for the server itself
    over: bool = False
    error: ModelUnavailable | None = None


@dataclass(frozen=True)
class _Failure:
    error: ModelUnavailable
    until: float
    stamp: int | None  # of a manifest that could not be opened: another manifest is worth a try


class Exports:
    """Knows the exports in flight, in the queue, and failed."""

    def __init__(self, source: ModelSource, *, on_demand: bool = True, wait: float = 0.0, most_waiting: int = 16):
        """wait : seconds that a request waits for an export. most_waiting : requests that may wait at once."""
        self._source, self._on_demand = source, on_demand
        self._wait, self._most_waiting = wait, most_waiting
        self._changed = threading.Condition()  # guards all fields below
        self._queue: list[_Export] = []  # the first export runs
        self._working = False  # whether a thread works through the queue
        self._failures: dict[Path, _Failure] = {}
        self._closed = False

    def require(
        self,
        key: ModelKey,
        is_gone: Callable[[], bool] = lambda: False,
        timeout: float | None = None,
        *,
        keep: bool = False,
    ) -> None:
        """Return when the model's export is whole; start the export where it is missing.

        timeout : seconds that the request has left. keep : for the server itself, which waits to the end.

        Raises
        ------
        ClientGone
            when ``is_gone`` turned true. An export for which no other request waits is ended.
        Unavailable
            when the export goes on; the message has its progress.
        ModelUnavailable
            when the export has failed, now or a while ago, or must not be started.
        """
        self._repeat_failure(key)
        if self._source.is_exported(key):
            self._check(key)
            return
        if not self._on_demand:
            raise ModelUnavailable(
                f"model {key} has not been exported, and this server exports nothing on demand (--export-on-demand); "
                f"run: {self._source.by_hand(key)}", permanent=True,
            )  # fmt: skip
        patience = float("inf") if keep else min(self._wait, self._wait if timeout is None else timeout)
        with self._changed:
            export = self._find_or_start(key)
            if keep:
                export.wanted_until = float("inf")
            if not keep and sum(one.waiting for one in self._queue) >= self._most_waiting:
                patience = 0.0
            self._await(export, is_gone, time.monotonic() + patience)
        if export.error is not None:
            raise export.error

    def load(self, key: ModelKey) -> TextModel:
        """Open the model for the pool; a permanent failure is remembered.

        Raises
        ------
        ModelUnavailable
            see ``ModelSource.load``.
        """
        try:
            return self._source.load(key)
        except ModelUnavailable as error:
            self._remember(key, error)
            raise

    def running(self) -> str | None:
        """The export in flight and its progress; None when there is none."""
        with self._changed:
            return self._describe(self._queue[0]) if self._queue else None

    def close(self) -> None:
        """Interrupt the export in flight, and wait for its end. Nothing of it is published."""
        with self._changed:
            self._closed = True
            for export in list(self._queue):
                self._end(export, "the server is shutting down")
            self._changed.wait_for(lambda: not self._working, END_SECONDS + 1.0)

    def _check(self, key: ModelKey) -> None:
        """Check the folder before a loaded model has to make room."""
        try:
            self._source.check(key)
        except ModelUnavailable as error:
            self._remember(key, error)
            raise

    # Failures.

    def _remember(self, key: ModelKey, error: ModelUnavailable) -> None:
        if error.permanent:
            failure = _Failure(error, time.monotonic() + REMEMBER_SECONDS, _stamp(key))
            with self._changed:
                self._failures[key.folder] = failure

    def _repeat_failure(self, key: ModelKey) -> None:
        with self._changed:
            failure = self._failures.get(key.folder)
            if failure is None:
                return
            left = failure.until - time.monotonic()
            if left > 0 and failure.stamp == _stamp(key):
                raise ModelUnavailable(f"{failure.error} (it is tried again in {left:.0f} s)", permanent=True)
            del self._failures[key.folder]

    # The following methods run with the lock held, except ``_run``.

    def _find_or_start(self, key: ModelKey) -> _Export:
        for export in self._queue:
            if export.key == key and not (export.process is not None and export.process.ended):
                return export
        if self._closed:
            raise ModelUnavailable("the server is shutting down")
        export = _Export(key)
        self._queue.append(export)
        if not self._working:
            self._working = True
            threading.Thread(target=self._run, name="export", daemon=True).start()
        return export

    def _await(self, export: _Export, is_gone: Callable[[], bool], deadline: float) -> None:
        export.waiting += 1
        try:
            while not export.over:
                if is_gone():
                    raise ClientGone
                left = deadline - time.monotonic()
                if left <= 0:
                    export.wanted_until = max(export.wanted_until, time.monotonic() + PATIENCE_SECONDS)
                    raise Unavailable(
                        f"{self._describe(export)}; ask again, or have the server wait (--export-wait)",
                        code="model_exporting", retry_after=RETRY_SECONDS,
                    )  # fmt: skip
                self._changed.wait(min(POLL_SECONDS, left))
        finally:
            export.waiting -= 1
            self._end_if_unwanted(export)

    def _end_if_unwanted(self, export: _Export) -> None:
        left = export.wanted_until - time.monotonic()
        if export.over or export.waiting:
            return
        if left <= 0:
            self._end(export, "nobody waits for it any more")
        elif left < float("inf"):
            timer = threading.Timer(left + POLL_SECONDS, self._look_again, args=(export,))
            timer.daemon = True
            timer.start()

    def _look_again(self, export: _Export) -> None:
        with self._changed:
            self._end_if_unwanted(export)

    def _end(self, export: _Export, why: str) -> None:
        export.error = ModelUnavailable(f"the export of model {export.key} was ended: {why}")
        log.info("the export of model %s is ended: %s", export.key, why)
        if export.process is not None:
            export.process.end()
        else:
            self._queue.remove(export)
            export.over = True
            self._changed.notify_all()

    def _describe(self, export: _Export) -> str:
        if export.process is None:
            first = self._queue[0]
            return f"model {export.key} waits to be exported until the export of model {first.key} is done"
        seconds = time.monotonic() - export.since
        progress = without_paths(export.process.progress)
        return f"model {export.key} is being exported, for {seconds:.0f} s so far: {progress}"

    def _run(self) -> None:
        """Work through the queue, on a thread that ends with the queue."""
        while True:
            error: ModelUnavailable | None = None
            with self._changed:
                if not self._queue:
                    self._working = False
                    self._changed.notify_all()
                    return
                export = self._queue[0]
                try:
                    export.process = self._source.exporter(export.key)
                except ModelUnavailable as problem:
                    error = problem
            try:
                if export.process is not None:
                    self._source.export(export.key, export.process)
            except ModelUnavailable as problem:
                error = problem
            except Exception as problem:  # the process cannot be started: out of memory or processes
                log.exception("exporting model %s failed", export.key)
                error = ModelUnavailable(f"exporting model {export.key} failed: {type(problem).__name__}: {problem}")
            if error is not None and export.error is None:
                log.error("%s", error)
                self._remember(export.key, error)
            with self._changed:
                export.error = None if error is None else export.error or error
                export.over = True
                self._queue.remove(export)
                self._changed.notify_all()


def refuse_switch(wanted: ModelKey, served: ModelKey) -> None:
    """Refuse models other than the server's own, where the operator wants no switching.

    Raises
    ------
    ApiError
        with status 404 for another model.
    """
    if wanted != served:
        raise ApiError(
            404, f"this server serves {served.entry.id} only and does not change to {wanted.entry.id} "
            "(--switch-models off)", param="model", code="model_not_served",
        )  # fmt: skip


def _stamp(key: ModelKey) -> int | None:
    try:
        return (key.folder / "manifest.json").stat().st_mtime_ns
    except OSError:
        return None
