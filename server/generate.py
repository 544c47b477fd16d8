"""Runs one generation request from prompt to last event: limits, images, model, cancellation, clean end.

Called by the chat and the responses resources, which only differ in how they write it down.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from models import precedence
from models.config import Config
from models.settings import InferenceSettings
from runtime.errors import EngineClosed
from runtime.requests import Finished, Generation, Request, TextDelta, Timings, Usage

from .answers import engine_error
from .errors import ClientGone, Unavailable
from .images import ImageReader
from .loading import ModelKey, ModelSource
from .logs import RequestRecord
from .memory import give_memory_back
from .messages import NO_IMAGE, Prompt
from .options import ServerOptions
from .pool import Lease, ModelPool

POLL_SECONDS = 0.1  # how often a silent generation is asked whether its client is still there
PING_SECONDS = 5.0  # silence after which a stream gets a comment
IDLE_SECONDS = 0.5  # without requests, after which freed memory goes back to the system
END_SECONDS = 10.0  # for cancelled requests to send their last event


class Job:
    """One running request: iterate its events, then ``close`` it, in any state and any number of times."""

    def __init__(
        self,
        generation: Generation,
        record: RequestRecord,
        is_gone: Callable[[], bool],
        on_close: Callable[[Job], None],
    ) -> None:
        self.record = record
        self._generation, self._is_gone, self._on_close = generation, is_gone, on_close
        self._closed = False

    def events(self) -> Iterator[TextDelta | Finished | None]:
        """The events up to and including ``Finished``; None where a stream should send a ping.

        Raises
        ------
        ClientGone
            as soon as the client has hung up.
        """
        last = time.monotonic()
        while True:
            event = self._generation.next_event(timeout=POLL_SECONDS)
            if self._is_gone():
                raise ClientGone
            if event is not None:
                last = time.monotonic()
                if isinstance(event, Finished):
                    self.record.result = event
                yield event
                if isinstance(event, Finished):
                    return
            elif time.monotonic() - last >= PING_SECONDS:
                last = time.monotonic()
                yield None

    def collect(self) -> tuple[str, Finished]:
        """Wait for the whole answer.

        Raises
        ------
        ClientGone
            as soon as the client has hung up.
        ApiError
            when the engine failed.
        """
        pieces: list[str] = []
        for event in self.events():
            if isinstance(event, TextDelta):
                pieces.append(event.text)
            elif isinstance(event, Finished):
                if event.detail == "error":
                    raise engine_error(event)
                return "".join(pieces), event
        raise AssertionError("a generation ended without its last event")

    def cancel(self) -> None:
        """Ask for an early end; the last event still comes."""
        self._generation.cancel()

    def close(self, outcome: str | None = None) -> None:
        """Stop what still runs, give the model back, write the record."""
        if self._closed:
            return
        self._closed = True
        result = self.record.result
        self._generation.cancel()
        self._on_close(self)
        self.record.finish(outcome or (_outcome(result) if result is not None else "client_gone"))


class Generator:
    """Starts jobs and knows those that run."""

    def __init__(
        self,
        config: Config,
        options: ServerOptions,
        source: ModelSource,
        pool: ModelPool[ModelKey],
        images: ImageReader,
    ) -> None:
        self._config, self._options = config, options
        self._source, self._pool, self._images = source, pool, images
        self._changed = threading.Condition()  # guards all below
        self._jobs: set[Job] = set()
        self._present = 0  # requests between start and close, waiting ones included
        self._untidy = False  # a job has run since memory was given back
        self._draining = False
        self._expired = False

    def enter(self) -> None:
        """Take a place in the house, before anything costly is done for a request; ``leave`` or a job's end frees it.

        Raises
        ------
        Unavailable
            when all places are taken, or the server is shutting down.
        """
        with self._changed:
            if self._draining:
                raise _shutting_down()
            if self._present >= self._options.capacity:
                raise Unavailable(
                    f"{self._present} requests are running or waiting; try again later", code="queue_full"
                )
            self._present += 1

    def leave(self) -> None:
        """Free the place of a request that became no job."""
        with self._changed:
            self._present -= 1
            if not self._present and self._untidy:
                self._untidy = False
                timer = threading.Timer(IDLE_SECONDS, self._tidy)
                timer.daemon = True
                timer.start()
            self._changed.notify_all()

    def start(
        self,
        prompt: Prompt,
        model_id: str,
        body: Mapping[str, Any],
        record: RequestRecord,
        is_gone: Callable[[], bool],
    ) -> Job:
        """Check the request, wait for the model, hand it to the engine. ``body``: settings that the request sets.

        Raises
        ------
        ClientGone, ApiError, and what ``errors.translate`` knows.
        """
        started = time.monotonic()
        entry = self._source.entry(model_id)
        record.model = model_id
        settings = precedence.resolve(self._config.inference, entry.defaults, self._options.inference_flags, body)
        if not prompt.image_urls:
            return Job(_Notice(NO_IMAGE), record, is_gone, lambda job: self.leave())
        text = prompt.finish()
        images = self._images.read(prompt.image_urls)
        record.image_sizes = [image.size for image in images]
        key = self._source.key(entry)
        try:
            lease = self._pool.acquire(key, lambda: is_gone() or self._expired, timeout=settings.deadline_s)
        except ClientGone:
            if self._expired:
                raise _shutting_down() from None
            raise
        try:
            request = Request(text, images, _without_waited(settings, time.monotonic() - started))
            generation = lease.model.submit(request)
        except BaseException as error:
            lease.release(broken=isinstance(error, EngineClosed))
            raise
        job = Job(generation, record, is_gone, lambda job: self._end(job, lease))
        with self._changed:
            self._jobs.add(job)
            self._untidy = True
            expired = self._expired
        if expired:
            job.cancel()
        return job

    def drain(self, timeout: float) -> bool:
        """Refuse new requests, wait for those in the house, end the rest early; True when none had to be."""
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: not self._present or self._expired, timeout)
            finished = not self._present
        if not finished:
            self.expire()
            with self._changed:
                self._changed.wait_for(lambda: not self._present, END_SECONDS)
        return finished

    def expire(self) -> None:
        """End all requests in the house early, each with a clean last event."""
        with self._changed:
            self._draining = self._expired = True
            jobs = list(self._jobs)
            self._changed.notify_all()
        for job in jobs:
            job.cancel()

    @property
    def draining(self) -> bool:
        """Whether the server takes no new work any more."""
        return self._draining

    @property
    def present(self) -> int:
        """Generation requests in the house: reading images, waiting for a model, queued or running."""
        with self._changed:
            return self._present

    def _tidy(self) -> None:
        """Return what a busy time left behind, images and activations, once nobody waits for it."""
        if not self.present:
            give_memory_back()
        else:
            self._untidy = True  # the last of those who are here now asks again

    def _end(self, job: Job, lease: Lease[ModelKey]) -> None:
        lease.release()
        with self._changed:
            self._jobs.discard(job)
        self.leave()


class _Notice:
    """A generation that only says one thing: the readable answer to a request without an image."""

    def __init__(self, text: str) -> None:
        self._events: list[TextDelta | Finished] = [
            Finished("stop", "eos", Usage(0, 0), Timings()),
            TextDelta(text, 0),
        ]

    def next_event(self, timeout: float | None = None) -> TextDelta | Finished | None:
        return self._events.pop() if self._events else None

    def cancel(self) -> None:
        """Nothing runs."""


def _outcome(finished: Finished) -> str:
    return {"eos": "ok", "stop_string": "ok", "max_tokens": "length", "context": "length"}.get(
        finished.detail, finished.detail
    )


def _without_waited(settings: InferenceSettings, waited: float) -> InferenceSettings:
    """The deadline counts from the request's arrival, not from the model's readiness."""
    if settings.deadline_s is None:
        return settings
    return replace(settings, deadline_s=max(0.0, settings.deadline_s - waited))


def _shutting_down() -> Unavailable:
    return Unavailable("the server is shutting down", code="shutting_down")
