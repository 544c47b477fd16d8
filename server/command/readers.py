"""Readers of pages: a model in this process, or (see ``remote``) a running server."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

from PIL import Image

from models.blocks import Block, blocks_of, places_of
from models.config import Config
from models.grounding import Box
from models.joint import PagePart, joint_prompt, not_reached, page_parts
from models.layout.task import is_document
from models.manifest import FILE_NAME, Manifest
from models.model_errors import ManifestError
from models.settings import InferenceSettings
from runtime.confidence import Confidence
from runtime.documents import DrawnPages
from runtime.library.source import ModelKey, ModelSource
from runtime.requests import Finished, Generation, Request, TextDelta, TextModel
from runtime.runtime_errors import EngineClosed, ModelUnavailable, QueueFull
from server.options import ServerOptions

from .command_errors import CommandFailed, Interrupted, PageFailed
from .progress import PageWork

POLL_SECONDS = 0.1  # seconds between two looks whether the user wants an end
QUEUE_SECONDS = 0.5  # seconds until a full queue is tried again


@dataclass(frozen=True)
class Reading:
    """The answer to one page."""

    text: str
    boxes: tuple[Box, ...] = ()
    finish_detail: str = "eos"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    confidence: Confidence | None = None
    blocks: tuple[Block, ...] = ()  # in reading order; empty: the model names none


class Reader(Protocol):
    """Reads pages, called by as many threads as ``start`` returns."""

    def identity(self) -> str | None:
        """Changes with the model, the prompt and the settings; None while unknown."""

    def seen_pixels(self) -> int | None:
        """Most pixels of a page that the model uses; None: unknown, or pages are read by their parts.

        Called once ``identity`` is known.
        """

    def describe(self) -> dict[str, object]:
        """Model, prompt and settings, for the run manifest and the JSON results."""

    def start(self) -> int:
        """Get ready; returns how many pages are best read at once.

        Raises
        ------
        CommandFailed
            when the model cannot be opened; the message names the remedy.
        InvalidInput
            for a prompt or a setting that the model cannot take.
        Interrupted
            when the user interrupted meanwhile.
        """

    def read(self, page: Image.Image, work: PageWork | None = None) -> Reading:
        """Read one page; updates ``work`` on the way.

        Raises
        ------
        InvalidInput, PageFailed
            when this page cannot be read.
        CommandFailed
            when no page can be read any more.
        Interrupted
            when the user interrupted meanwhile.
        """

    @property
    def joint(self) -> bool:
        """Whether the pages of a document are read together, by ``read_together``."""

    def read_together(self, pages: DrawnPages, work: PageWork | None = None) -> list[Reading | PageFailed]:
        """Read all pages of a document in one answer; a failure for each page that the answer does not reach.

        Raises as ``read``, when none of the pages can be read.
        """

    def close(self) -> None:
        """Free everything. Idempotent."""


def spread(
    whole: Reading, parts: Sequence[PagePart], pages: int, boxes: Sequence[Sequence[Box]],
    blocks: Sequence[tuple[Block, ...]],
) -> list[Reading | PageFailed]:  # fmt: skip
    """One answer to ``count`` pages as a reading for each page; tokens and times are shared out evenly.

    parts, boxes, blocks : those of the pages that the answer reaches.
    """
    reached = len(parts)
    prompt, rest = divmod(whole.prompt_tokens, reached)
    timings = {stage: round(seconds / reached, 4) for stage, seconds in whole.timings.items()}
    readings: list[Reading | PageFailed] = [
        Reading(
            whole.text[part.start : part.end], tuple(own), whole.finish_detail if i + 1 == reached else "eos",
            prompt + (rest if i == 0 else 0), part.tokens, timings, whole.confidence, named,
        )
        for i, (part, own, named) in enumerate(zip(parts, boxes, blocks, strict=True))
    ]  # fmt: skip
    return readings + [PageFailed(not_reached(whole.finish_detail)) for _ in range(pages - reached)]


class LocalReader:
    """Reads with a model in this process, exporting the model first where needed, as the server does."""

    def __init__(
        self, config: Config, options: ServerOptions, prompt: str, settings: InferenceSettings, stop: threading.Event,
        *, raw: bool = False, schema: str | None = None, several: InferenceSettings | None = None,
        device: str | None = None,
    ) -> None:  # fmt: skip
        """several : settings of an answer to several pages, where the prompt asks for one; None: one page an answer.
        device : the device's name, where the model runs on another machine; None: asked of this machine.
        """
        self._prompt, self._settings, self._stop, self._raw = prompt, settings, stop, raw
        self._schema, self._several = schema, several
        if device is None:
            from runtime.providers import find_device  # needs ONNX Runtime, and seconds to import it

            device = find_device(options.device, options.threads or None).name
        # On a CPU passes and steps share the processors, on a GPU they overlap. Each page has its own deadline.
        self._patient = device == "cpu" and settings.deadline_s is None
        self._source = ModelSource(config, replace(options, many=True), device)
        self.key: ModelKey = self._source.key(self._source.entry(options.model))
        self._model: TextModel | None = None

    def identity(self) -> str | None:
        try:
            manifest = (self.key.folder / FILE_NAME).read_bytes()
        except OSError:
            return None  # not exported yet
        digest = hashlib.sha256(manifest)
        raw = ["raw"] if self._raw else []
        of_pages = (self.key.entry.layout, dict(self.key.entry.page)) if is_document(self._prompt) else None
        others = [one for one in (self._several, self._schema, of_pages) if one is not None]
        digest.update(repr((self._prompt, self._settings, *others, *raw)).encode())
        return digest.hexdigest()

    def seen_pixels(self) -> int | None:
        return self._source.seen_pixels(self.key, self._prompt, self._settings)

    def model_files(self) -> str:
        """A digest of the export's files, the same on every machine with this export; "" without an export."""
        try:
            files = Manifest.load(self.key.folder).files
        except ManifestError:
            return ""
        return hashlib.sha256(repr(sorted((name, info.sha256) for name, info in files.items())).encode()).hexdigest()

    def describe(self) -> dict[str, object]:
        return {
            "model": self.key.entry.id,
            "dtype": self.key.dtype,
            "prompt": self._prompt,
            "raw": self._raw,
            **({"schema": json.loads(self._schema)} if self._schema else {}),
            "settings": asdict(self._several or self._settings),
        }

    def start(self) -> int:
        if self._model is None:
            self._model = self._load()
            self._model.check(self._prompt, self._settings)
        return self._model.slots

    def _load(self) -> TextModel:
        with ThreadPoolExecutor(1, "load") as pool:
            loading = pool.submit(self._source.load, self.key)
            while True:
                try:
                    return loading.result(POLL_SECONDS)
                except TimeoutError:
                    if self._stop.is_set():
                        self._source.close()
                        if loading.exception() is None:
                            loading.result().close()
                        raise Interrupted from None
                except ModelUnavailable as error:
                    raise CommandFailed(str(error)) from error

    @property
    def joint(self) -> bool:
        return self._several is not None

    def read(self, page: Image.Image, work: PageWork | None = None) -> Reading:
        assert self._model is not None
        pieces, event = self._answer(
            Request(self._prompt, [page], self._settings, self._raw, schema=self._schema, patient=self._patient),
            work or PageWork(),
        )
        text = "".join(piece.text for piece in pieces)
        return _reading(text, event, places_of(event.blocks, self._model.boxes(text, *page.size)))

    def read_together(self, pages: DrawnPages, work: PageWork | None = None) -> list[Reading | PageFailed]:
        assert self._model is not None
        settings = self._several if self._several is not None and len(pages) > 1 else self._settings
        asked = joint_prompt(self._prompt, len(pages))
        request = Request(asked, pages, settings, self._raw, patient=self._patient)
        pieces, event = self._answer(request, work or PageWork())
        parts = page_parts([(piece.text, piece.token_count) for piece in pieces], len(pages))
        whole = _reading("".join(piece.text for piece in pieces), event)
        boxes = [
            self._model.boxes(whole.text[part.start : part.end], *size)
            for part, size in zip(parts, pages.sizes, strict=False)
        ]
        return spread(whole, parts, len(pages), boxes, [blocks_of(own) for own in boxes])

    def _answer(self, request: Request, work: PageWork) -> tuple[list[TextDelta], Finished]:
        """The pieces of an answer, and its last event."""
        generation = self._submit(request)
        pieces: list[TextDelta] = []
        while not isinstance(event := generation.next_event(POLL_SECONDS), Finished):
            work.stage = generation.stage
            if event is not None:
                pieces.append(event)
                work.add(event.text, event.token_count)
            if self._stop.is_set():
                generation.cancel()
        if event.detail == "cancelled":
            raise Interrupted if self._stop.is_set() else CommandFailed("the model was closed under its pages")
        if event.error is not None:
            raise PageFailed(event.error)
        return pieces, event

    def _submit(self, request: Request) -> Generation:
        assert self._model is not None
        while True:
            try:
                return self._model.submit(request)
            except QueueFull:  # more jobs than slots and queue hold
                if self._stop.wait(QUEUE_SECONDS):
                    raise Interrupted from None
            except EngineClosed as error:
                raise CommandFailed(f"the model stopped: {error}; go on with --resume") from error

    def close(self) -> None:
        self._source.close()
        if self._model is not None:
            self._model.close()
            self._model = None


def _reading(text: str, event: Finished, boxes: tuple[Box, ...] = ()) -> Reading:
    timings = {stage: round(seconds, 4) for stage, seconds in event.timings.by_stage().items()}
    usage = event.usage
    return Reading(
        text, boxes, event.detail, usage.prompt_tokens, usage.completion_tokens, timings, event.confidence, event.blocks
    )
