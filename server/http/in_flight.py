"""The requests in flight: each gets a place, is checked, gets its model, and is tracked until its end.

Called by the endpoints, which differ only in how they read bodies and write answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from models import precedence
from models.config import Config
from models.layout.step import page_defaults, rules_of
from models.layout.task import is_document
from models.registration import ModelEntry
from models.registry import defaults_of, reads_jointly, usual
from models.settings import InferenceSettings
from runtime.documents import Stop, Stopped
from runtime.library.memory import give_memory_back
from runtime.library.source import ModelKey, ModelSource
from server.api_errors import BadRequest, ClientGone, Unavailable
from server.options import ServerOptions

from .admission import Admission, Held
from .asked import Asked
from .ceilings import Ceilings
from .contents import DocumentContent, Notice, PicturesContent
from .document_reader import DocumentReader
from .exporting import Exports, refuse_switch
from .images import ImageReader
from .joint_pages import JointPages
from .logs import RequestRecord
from .messages import NO_IMAGE
from .pool import ModelPool
from .questions import Questions, check_task
from .running import RunningRequest

IDLE_SECONDS = 0.5  # seconds without requests, after which freed memory goes back to the system
END_SECONDS = 10.0  # seconds for cancelled requests to send their last event


class RequestsInFlight:
    """Starts requests and tracks those in flight."""

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
        self._changed = threading.Condition()  # guards all fields below
        self._running: set[RunningRequest] = set()
        self._places: list[Held] = []  # one for each request in flight, waiting ones included
        self._untidy = False  # there was a request since memory was last given back
        self._draining = False
        self._expired = False

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for a request, taken before any costly work.

        Raises
        ------
        Unavailable
            when all places are taken, or the server is shutting down.
        """
        with self._changed:
            if self._draining:
                raise _shutting_down()
            self._places.append(self._admission.take("places"))
            self._untidy = True  # also after an error: pictures may have been decoded
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._places.pop().release()
            if not self._places and self._untidy:
                self._untidy = False
                timer = threading.Timer(IDLE_SECONDS, self._tidy)
                timer.daemon = True
                timer.start()
            self._changed.notify_all()

    def start(self, asked: Asked, record: RequestRecord, is_gone: Callable[[], bool]) -> RunningRequest:
        """Check the request, wait for its model, submit to the engine. The request must have its place.

        Raises
        ------
        ClientGone, ApiError
            and the errors that ``api_errors.translate`` knows.
        """
        try:
            return self._start(asked, record, is_gone)
        except (Stopped, ClientGone):
            raise (_shutting_down() if self._expired else ClientGone()) from None

    def _start(self, asked: Asked, record: RequestRecord, is_gone: Stop) -> RunningRequest:
        started = time.monotonic()
        reading = asked.reading

        def stop() -> bool:
            return is_gone() or self._expired

        entry = self._source.entry(asked.model)
        record.model = asked.model
        self._ceilings.check(asked.settings)
        self._settings(entry, asked)
        check_task(reading, entry)
        if not asked.prompt.images:
            return RunningRequest(Notice(NO_IMAGE), record, is_gone, ExitStack())
        question = self._questions.of(asked.prompt, reading, entry)
        settings = self._settings(entry, asked, asked.prompt.images, question.prompt)
        if reading.rules and is_document(question.prompt):
            reading = replace(reading, page=rules_of(entry).change(reading.rules))
        key = self._key(entry)
        joint = reads_jointly(entry.family, question.prompt)
        notes = [note for note in (self._ceilings.note(asked.settings), question.note) if note is not None]
        with ExitStack() as held:
            held.enter_context(self._admission.take("tokens", settings.max_new_tokens))
            if asked.prompt.files:
                held.enter_context(self._admission.take("documents"))
            seen = self._source.seen_pixels(key, question.prompt, settings) if asked.prompt.files else None
            content = self._open(replace(asked, reading=reading), record, stop, settings, joint, seen)
            held.callback(content.close)
            if isinstance(content, JointPages):
                settings = self._settings(entry, asked, len(content))
            asked.prompt.let_go()
            if not self._is_here(key):
                self._exports.require(key, stop, settings.deadline_s)
            lease = held.enter_context(self._pool.acquire(key, stop, timeout=settings.deadline_s))
            settings = _without_waited(settings, time.monotonic() - started)
            generation = content.begin(lease.model, question.prompt, settings)
            kept = held.pop_all()
        running = RunningRequest(
            generation, record, is_gone, kept, content=content, lease=lease, progress=reading.progress,
            notes={
                **({"prompt_ignored": True} if question.ignored else {}),
                **({"note": "; ".join(notes)} if notes else {}),
            },
        )  # fmt: skip
        kept.callback(self._forget, running)
        with self._changed:
            self._running.add(running)
            expired = self._expired
        if expired:
            running.cancel()
        return running

    def _forget(self, running: RunningRequest) -> None:
        with self._changed:
            self._running.discard(running)

    def _settings(self, entry: ModelEntry, asked: Asked, images: int = 1, prompt: str = "") -> InferenceSettings:
        """Settings of a request with ``images`` images that are read together."""
        defaults = {**defaults_of(entry.family, images), **page_defaults(entry, prompt)}
        inference = {**asked.floor, **defaults, **self._config.inference}
        settings = precedence.resolve(inference, entry.defaults, self._options.inference_flags, asked.settings)
        return self._ceilings.hold(settings, usual(entry.family, "max_tiles"))

    def _open(
        self,
        asked: Asked,
        record: RequestRecord,
        stop: Stop,
        settings: InferenceSettings,
        joint: bool,
        seen_pixels: int | None,
    ) -> PicturesContent | DocumentContent | JointPages:
        """Fetch the images and read their headers, or open the document, before waiting for a model.

        joint : whether the pages of a document are read together, and the answer to several images is split by page.
        seen_pixels : pixels of a document's page that the model sees.
        """
        prompt, reading = asked.prompt, asked.reading
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
            pictures = self._images.open(prompt.image_urls, stop, settings.transparency, settings.orient)
            record.image_sizes = pictures.sizes
            return PicturesContent(pictures, reading, record.client, stop, joint)
        if prompt.images > 1:
            raise BadRequest(
                f"a document is read alone; the message has {len(prompt.files)} files and {len(prompt.image_urls)} "
                "images", param="messages",
            )  # fmt: skip
        document, indices = self._documents.open(
            prompt.files[0],
            reading.pages,
            stop,
            settings.transparency,
            reading.password,
            settings.orient,
            seen_pixels,
            reading.dpi,
        )
        record.pages = len(indices)
        if reading.structure is not None and len(indices) > 1:
            field = reading.structure.field
            raise BadRequest(
                f"{field}: each page has an answer of its own, and {len(indices)} pages are asked for; choose one by "
                "ocr.pages", param=field,
            )  # fmt: skip
        if joint:
            return JointPages(document, indices, reading, record.client, self._admission, stop)
        return DocumentContent(document, indices, reading, record, self._admission, stop)

    def _key(self, entry: ModelEntry) -> ModelKey:
        key = self._source.key(entry)
        if self._options.switch_models == "off":
            refuse_switch(key, self._source.key(self._source.entry(self._options.model)))
        return key

    def _is_here(self, key: ModelKey) -> bool:
        """Whether the model is exported.

        Raises
        ------
        ModelUnavailable
            when the export is damaged.
        """
        if key in self._pool.loaded_keys():
            return True
        if not self._source.is_exported(key):
            return False
        self._exports.require(key)
        return True

    def refuse(self) -> int:
        """Refuse new requests from here on; return how many are in flight."""
        with self._changed:
            self._draining = True
            return len(self._places)

    def drain(self, timeout: float) -> bool:
        """Refuse new requests, wait for those in flight, end the rest early. True when none was ended early."""
        self.refuse()
        with self._changed:
            self._changed.wait_for(lambda: not self._places or self._expired, timeout)
            finished = not self._places
        if not finished:
            self.expire()
            with self._changed:
                self._changed.wait_for(lambda: not self._places, END_SECONDS)
        return finished

    def expire(self) -> None:
        """End all requests in flight early, each with a clean last event."""
        with self._changed:
            self._draining = self._expired = True
            running = list(self._running)
            self._changed.notify_all()
        for one in running:
            one.cancel()

    @property
    def draining(self) -> bool:
        """Whether the server refuses new work."""
        return self._draining

    @property
    def present(self) -> int:
        """Generation requests in flight: reading images, waiting for a model, queued or running."""
        with self._changed:
            return len(self._places)

    def _tidy(self) -> None:
        """Give freed memory (images, activations) back to the system once the server is idle."""
        if not self.present:
            give_memory_back()
        else:
            self._untidy = True  # the last request in flight calls this again


def _without_waited(settings: InferenceSettings, waited: float) -> InferenceSettings:
    """Shorten the deadline by the time waited: it counts from the request's arrival, not from the model's readiness."""
    if settings.deadline_s is None:
        return settings
    return replace(settings, deadline_s=max(0.0, settings.deadline_s - waited))


def _shutting_down() -> Unavailable:
    return Unavailable("the server is shutting down", code="shutting_down")
