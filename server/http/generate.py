"""Runs one generation request from prompt to last event: limits, images, model, cancellation, clean end.

Called by the chat and the responses resources, which only differ in how they write it down.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from PIL import Image

from models import precedence
from models.config import Config
from models.errors import InvalidInput
from models.layout.step import page_defaults, rules_of
from models.layout.task import is_document
from models.pixels import Transparency
from models.registration import ModelEntry
from models.registry import defaults_of, reads_jointly, usual
from models.settings import InferenceSettings
from runtime.confidence import TokenLogprob
from runtime.documents import Document, Stop, Stopped
from runtime.errors import EngineClosed
from runtime.library.memory import give_memory_back
from runtime.library.source import ModelKey, ModelSource
from runtime.requests import Finished, Generation, Request, Stage, TextDelta, TextModel, Timings, Usage
from server.api_errors import BadRequest, ClientGone, Unavailable
from server.options import ServerOptions

from .admission import Admission, Held
from .answers import engine_error
from .ceilings import Ceilings
from .documents import (
    DocumentGeneration,
    DocumentReader,
    Page,
    describe_blocks,
    describe_boxes,
    describe_flaws,
    describe_warnings,
)
from .exporting import Exports, refuse_switch
from .images import ImageReader, Pictures
from .joint_pages import JointPages, describe_pages
from .logs import RequestRecord
from .messages import NO_IMAGE, Prompt
from .pool import Lease, ModelPool
from .questions import Questions, check_task
from .schema import Reading

POLL_SECONDS = 0.1  # how often a silent generation is asked whether its client is still there
PING_SECONDS = 5.0  # silence after which a stream gets a comment
IDLE_SECONDS = 0.5  # without requests, after which freed memory goes back to the system
END_SECONDS = 10.0  # for cancelled requests to send their last event


Report = Callable[[Sequence[TextDelta], Finished], dict[str, Any]]


def _no_page(number: int) -> Image.Image:
    raise InvalidInput("there is no document")


class Job:
    """One running request: iterate its events, then ``close`` it, in any state and any number of times."""

    def __init__(
        self,
        generation: Generation,
        record: RequestRecord,
        is_gone: Callable[[], bool],
        on_close: Callable[[Job], None],
        report: Report = lambda pieces, finished: {},
        draw: Callable[[int], Image.Image] = _no_page,
        progress: bool = False,
    ) -> None:
        """``report``: what the answer's ``ocr`` field says beside the usual, from the whole answer. ``draw``: a page of
        the document by its number, from 1, until the job is closed.

        progress : its stages are events too, for a stream that was asked for them.
        """
        self.record = record
        self._generation, self._is_gone, self._on_close = generation, is_gone, on_close
        self._report = report
        self.draw = draw
        self._progress = progress
        self._pieces: list[TextDelta] = []
        self.logprobs: list[TokenLogprob] = []  # of the answer so far, where they were asked for
        self._closed = False

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(piece.text for piece in self._pieces)

    def report(self) -> dict[str, Any]:
        """Boxes and pages, where the request asked for them. Call it after the last event."""
        assert self.record.result is not None
        return self._report(self._pieces, self.record.result)

    def events(self) -> Iterator[TextDelta | Finished | Stage | None]:
        """The events up to and including ``Finished``; None where a stream should send a ping.

        Raises
        ------
        ClientGone
            as soon as the client has hung up.
        """
        last = time.monotonic()
        stage: Stage | None = None
        while True:
            event = self._generation.next_event(timeout=POLL_SECONDS)
            if self._is_gone():
                raise ClientGone
            if self._progress and stage != (stage := self._generation.stage):
                yield stage
            if event is not None:
                last = time.monotonic()
                if isinstance(event, Finished):
                    self.record.result = event
                else:
                    self._pieces.append(event)
                    self.logprobs += event.logprobs
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
        for event in self.events():
            if isinstance(event, Finished):
                if event.detail == "error":
                    raise engine_error(event)
                return self.text, event
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
        exports: Exports,
        pool: ModelPool[ModelKey],
        images: ImageReader,
        documents: DocumentReader,
        admission: Admission,
    ) -> None:
        self._config, self._options = config, options
        self._source, self._exports, self._pool = source, exports, pool
        self._images, self._documents, self._admission = images, documents, admission
        self._questions, self._ceilings = Questions(options), Ceilings.of(options)
        self._changed = threading.Condition()  # guards all below
        self._jobs: set[Job] = set()
        self._places: list[Held] = []  # one for each request between start and close, waiting ones included
        self._untidy = False  # somebody has been here since memory was given back
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
            self._places.append(self._admission.take("places"))
            self._untidy = True  # also where no job comes of it: its pictures may have been decoded

    def leave(self) -> None:
        """Free the place of a request that became no job."""
        with self._changed:
            self._places.pop().release()
            if not self._places and self._untidy:
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
        reading: Reading,
        record: RequestRecord,
        is_gone: Callable[[], bool],
        *,
        floor: Mapping[str, Any] = MappingProxyType({}),
    ) -> Job:
        """Check the request, wait for the model, hand it to the engine.

        body : settings that the request sets. floor : the endpoint's own, where nobody sets any.

        Raises
        ------
        ClientGone, ApiError, and what ``errors.translate`` knows.
        """
        try:
            return self._start(prompt, model_id, body, reading, record, is_gone, floor)
        except (Stopped, ClientGone):
            raise (_shutting_down() if self._expired else ClientGone()) from None

    def _start(
        self,
        prompt: Prompt,
        model_id: str,
        body: Mapping[str, Any],
        reading: Reading,
        record: RequestRecord,
        is_gone: Stop,
        floor: Mapping[str, Any],
    ) -> Job:
        started = time.monotonic()

        def stop() -> bool:
            return is_gone() or self._expired

        entry = self._source.entry(model_id)
        record.model = model_id
        self._ceilings.check(body)
        self._settings(entry, floor, body)
        check_task(reading, entry)
        if not prompt.images:
            return Job(_Notice(NO_IMAGE), record, is_gone, lambda job: self.leave())
        asked = self._questions.of(prompt, reading, entry)
        settings = self._settings(entry, floor, body, prompt.images, asked.prompt)
        if reading.rules and is_document(asked.prompt):
            reading = replace(reading, page=rules_of(entry).change(reading.rules))
        key = self._key(entry)
        notes = [note for note in (self._ceilings.note(body), asked.note) if note is not None]
        joint = reads_jointly(entry.family, asked.prompt)
        with ExitStack() as held:
            held.enter_context(self._admission.take("tokens", settings.max_new_tokens))
            if prompt.files:
                held.enter_context(self._admission.take("documents"))
            content = self._open(prompt, reading, record, stop, settings.transparency, joint)
            held.callback(content.close)
            if isinstance(content, JointPages):
                settings = self._settings(entry, floor, body, len(content))
            prompt.let_go()
            if not self._is_here(key):
                self._exports.require(key, stop, settings.deadline_s)
            lease = self._pool.acquire(key, stop, timeout=settings.deadline_s)
            try:
                settings = _without_waited(settings, time.monotonic() - started)
                generation = content.begin(lease.model, asked.prompt, settings)
            except BaseException as error:
                lease.release(broken=isinstance(error, EngineClosed))
                raise
            held_by_job = held.pop_all()
        job = Job(
            generation, record, is_gone,
            on_close=lambda job: self._end(job, lease, held_by_job),
            report=lambda pieces, finished: {
                **({"prompt_ignored": True} if asked.ignored else {}),
                **({"note": "; ".join(notes)} if notes else {}),
                **content.report(lease.model, pieces, finished),
            },
            draw=content.draw, progress=reading.progress,
        )  # fmt: skip
        with self._changed:
            self._jobs.add(job)
            expired = self._expired
        if expired:
            job.cancel()
        return job

    def _settings(
        self, entry: ModelEntry, floor: Mapping[str, Any], body: Mapping[str, Any], images: int = 1, prompt: str = ""
    ) -> InferenceSettings:
        """Of a request with so many images that are read together."""
        defaults = {**defaults_of(entry.family, images), **page_defaults(entry, prompt)}
        inference = {**floor, **defaults, **self._config.inference}
        settings = precedence.resolve(inference, entry.defaults, self._options.inference_flags, body)
        return self._ceilings.hold(settings, usual(entry.family, "max_tiles"))

    def _open(
        self, prompt: Prompt, reading: Reading, record: RequestRecord, stop: Stop, transparency: Transparency,
        joint: bool,
    ) -> _Pictures | _Pages | JointPages:  # fmt: skip
        """Fetch the images and look at them, or open the document, before a model is waited for.

        joint : whether the pages of a document are read together, and the answer to several images is parted by them.
        """
        if not prompt.files:
            if reading.pages is not None:
                raise BadRequest("pages are chosen from a document, and there is none", param="ocr.pages")
            if reading.boxes and prompt.images > 1 and not joint:
                raise BadRequest(
                    f"boxes need one image, and there are {prompt.images}: nothing in an answer to this prompt says "
                    "which of them a box is on; send one at a time, or ask for a task that reads pages together, where "
                    "the model has one (/v1/models: joint_tasks)",
                    param="ocr.boxes",
                )
            pictures = self._images.open(prompt.image_urls, stop, transparency)
            record.image_sizes = pictures.sizes
            return _Pictures(pictures, reading, record.client, stop, joint)
        if prompt.images > 1:
            raise BadRequest(
                f"a document is read alone; the message has {len(prompt.files)} files and {len(prompt.image_urls)} "
                "images", param="messages",
            )  # fmt: skip
        document, indices = self._documents.open(prompt.files[0], reading.pages, stop, transparency, reading.password)
        record.pages = len(indices)
        if reading.structure is not None and len(indices) > 1:
            field = reading.structure.field
            raise BadRequest(
                f"{field}: each page has an answer of its own, and {len(indices)} pages are asked for; choose one by "
                "ocr.pages", param=field,
            )  # fmt: skip
        if joint:
            return JointPages(document, indices, reading, record.client, self._admission, stop)
        return _Pages(document, indices, reading, record, self._admission, stop)

    def _key(self, entry: ModelEntry) -> ModelKey:
        key = self._source.key(entry)
        if self._options.switch_models == "off":
            refuse_switch(key, self._source.key(self._source.entry(self._options.model)))
        return key

    def _is_here(self, key: ModelKey) -> bool:
        """Whether the model can be loaded as it stands.

        Raises
        ------
        ModelUnavailable
            when its export is damaged.
        """
        if key in self._pool.loaded_keys():
            return True
        if not self._source.is_exported(key):
            return False
        self._exports.require(key)
        return True

    def drain(self, timeout: float) -> bool:
        """Refuse new requests, wait for those in the house, end the rest early; True when none had to be."""
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: not self._places or self._expired, timeout)
            finished = not self._places
        if not finished:
            self.expire()
            with self._changed:
                self._changed.wait_for(lambda: not self._places, END_SECONDS)
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
            return len(self._places)

    def _tidy(self) -> None:
        """Return what a busy time left behind, images and activations, once nobody waits for it."""
        if not self.present:
            give_memory_back()
        else:
            self._untidy = True  # the last of those who are here now asks again

    def _end(self, job: Job, lease: Lease[ModelKey], held: ExitStack) -> None:
        try:
            lease.release()
            with self._changed:
                self._jobs.discard(job)
        finally:
            held.close()
            self.leave()


class _Pictures:
    """The images of a request, which are read together."""

    def __init__(self, pictures: Pictures, reading: Reading, client: str, stop: Stop, joint: bool) -> None:
        self._pictures, self._reading, self._client, self._stop = pictures, reading, client, stop
        self._sizes = list(pictures.sizes)
        self._joint = joint and len(self._sizes) > 1
        self._held = ExitStack()  # what a page that is read by its parts takes of the house until it is over

    def begin(self, model: TextModel, prompt: str, settings: InferenceSettings) -> Generation:
        with ExitStack() as held:
            images = held.enter_context(self._pictures.decoded(self._stop))
            if is_document(prompt):
                self._held.push(held.pop_all())
            reading = self._reading
            request = Request(
                prompt, images, settings, reading.raw, self._client, reading.alternatives, reading.page, reading.schema
            )
            return model.submit(request)

    def report(self, model: TextModel, pieces: Sequence[TextDelta], finished: Finished) -> dict[str, Any]:
        said = describe_warnings(self._pictures.warnings, self._pictures.truncated)
        if self._joint:
            numbers = range(1, len(self._sizes) + 1)
            return said | describe_pages(model, pieces, finished, numbers, self._sizes, self._reading.boxes)
        if flaws := describe_flaws(finished.blocks, 1):
            said["blocks_not_whole"] = flaws
        if not self._reading.boxes:
            return said
        ((width, height),) = self._sizes
        text = "".join(piece.text for piece in pieces)
        return {
            **said,
            "pages": [{"page": 1, "width": width, "height": height}],
            "boxes": describe_boxes(model, text, (width, height), 1, finished.blocks),
            **({"blocks": describe_blocks(finished.blocks, 1)} if finished.blocks else {}),
        }

    def draw(self, number: int) -> Image.Image:
        return _no_page(number)

    def close(self) -> None:
        self._pictures.close()
        self._held.close()


class _Pages:
    """The document of a request, which is read page by page."""

    def __init__(
        self, document: Document, indices: list[int], reading: Reading, record: RequestRecord, admission: Admission,
        stop: Stop,
    ) -> None:  # fmt: skip
        self._document, self._indices, self._reading, self._record = document, indices, reading, record
        self._admission, self._stop = admission, stop
        self._generation: DocumentGeneration | None = None

    def begin(self, model: TextModel, prompt: str, settings: InferenceSettings) -> Generation:
        self._generation = DocumentGeneration(
            model, self._document, self._indices, prompt, settings, self._reading, self._admission,
            self._stop, self._count, self._record.client,
        )  # fmt: skip
        return self._generation

    def report(self, model: TextModel, pieces: Sequence[TextDelta], finished: Finished) -> dict[str, Any]:
        assert self._generation is not None
        return self._generation.report(self._reading.boxes)

    def draw(self, number: int) -> Image.Image:
        return self._document.page(number - 1, self._stop)

    def close(self) -> None:
        if self._generation is not None:
            self._generation.close()
        self._document.close()

    def _count(self, page: Page) -> None:
        self._record.pages_done += 1
        ended = page.finished.detail if page.finished is not None else "error"
        self._record.metrics.pages.labels(self._record.model, "error" if page.error else ended).inc()


class _Notice:
    """A generation that only says one thing: the readable answer to a request without an image."""

    def __init__(self, text: str) -> None:
        self._events: list[TextDelta | Finished] = [
            Finished("stop", "no_image", Usage(0, 0), Timings()),
            TextDelta(text, 0),
        ]

    def next_event(self, timeout: float | None = None) -> TextDelta | Finished | None:
        return self._events.pop() if self._events else None

    @property
    def stage(self) -> Stage:
        """See ``Generation``."""
        return "reading"

    def cancel(self) -> None:
        """Nothing runs."""


def _outcome(finished: Finished) -> str:
    return {"eos": "ok", "stop_string": "ok", "no_image": "ok", "max_tokens": "length", "context": "length"}.get(
        finished.detail, finished.detail
    )


def _without_waited(settings: InferenceSettings, waited: float) -> InferenceSettings:
    """The deadline counts from the request's arrival, not from the model's readiness."""
    if settings.deadline_s is None:
        return settings
    return replace(settings, deadline_s=max(0.0, settings.deadline_s - waited))


def _shutting_down() -> Unavailable:
    return Unavailable("the server is shutting down", code="shutting_down")
