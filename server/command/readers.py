"""Who reads a page: a model in this process, or (see ``remote``) a running server."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Protocol

from PIL import Image

from models.config import Config
from models.grounding import Box
from models.manifest import FILE_NAME
from models.settings import InferenceSettings
from runtime.confidence import Confidence
from runtime.errors import EngineClosed, QueueFull
from runtime.requests import Finished, Generation, Request, TextModel
from server.errors import ModelUnavailable
from server.loading import ModelKey, ModelSource
from server.options import ServerOptions

from .errors import CommandFailed, Interrupted, PageFailed
from .progress import PageWork

POLL_SECONDS = 0.1  # how often a running page looks whether the user wants an end
QUEUE_SECONDS = 0.5  # until a full queue is tried again


@dataclass(frozen=True)
class Reading:
    """What reading one page gave."""

    text: str
    boxes: tuple[Box, ...] = ()
    finish_detail: str = "eos"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    confidence: Confidence | None = None


class Reader(Protocol):
    """Reads pages, from as many threads as ``jobs`` says."""

    def identity(self) -> str | None:
        """Changes with the model, the prompt and the settings; None while nobody knows."""

    def describe(self) -> dict[str, object]:
        """What the run manifest and the JSON results say of the model, the prompt and the settings."""

    def start(self) -> int:
        """Get ready; returns how many pages are best read at once.

        Raises
        ------
        CommandFailed
            when the model cannot be had; the message says what to do.
        InvalidInput
            for a prompt or a setting that the model cannot take.
        Interrupted
            when the user wanted an end meanwhile.
        """

    def read(self, page: Image.Image, work: PageWork | None = None) -> Reading:
        """Read one page; ``work`` is kept up to date on the way.

        Raises
        ------
        InvalidInput, PageFailed
            when this page cannot be read.
        CommandFailed
            when no page can be read any more.
        Interrupted
            when the user wanted an end meanwhile.
        """

    def close(self) -> None:
        """Let go of everything. Idempotent."""


class LocalReader:
    """Reads with a model in this process, exporting it first where needed, as the server does."""

    def __init__(
        self, config: Config, options: ServerOptions, prompt: str, settings: InferenceSettings, stop: threading.Event,
        *, raw: bool = False,
    ) -> None:  # fmt: skip
        from runtime.providers import find_device  # needs ONNX Runtime, and seconds to import it

        self._prompt, self._settings, self._stop, self._raw = prompt, settings, stop, raw
        device = find_device(options.device, options.threads or None)
        self._source = ModelSource(config, options, device.name)
        self._key: ModelKey = self._source.key(self._source.entry(options.model))
        self._model: TextModel | None = None

    def identity(self) -> str | None:
        try:
            manifest = (self._key.folder / FILE_NAME).read_bytes()
        except OSError:
            return None  # not exported yet
        digest = hashlib.sha256(manifest)
        raw = ["raw"] if self._raw else []
        digest.update(repr((self._prompt, self._settings, *raw)).encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        return {
            "model": self._key.entry.id,
            "dtype": self._key.dtype,
            "prompt": self._prompt,
            "raw": self._raw,
            "settings": asdict(self._settings),
        }

    def start(self) -> int:
        if self._model is None:
            self._model = self._load()
            self._model.check(self._prompt, self._settings)
        return self._model.slots

    def _load(self) -> TextModel:
        with ThreadPoolExecutor(1, "load") as pool:
            loading = pool.submit(self._source.load, self._key)
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

    def read(self, page: Image.Image, work: PageWork | None = None) -> Reading:
        assert self._model is not None
        generation = self._submit(Request(self._prompt, [page], self._settings, self._raw))
        work = work or PageWork()
        pieces: list[str] = []
        while not isinstance(event := generation.next_event(POLL_SECONDS), Finished):
            work.stage = generation.stage
            if event is not None:
                pieces.append(event.text)
                work.tokens += event.token_count
            if self._stop.is_set():
                generation.cancel()
        if event.detail == "cancelled":
            raise Interrupted if self._stop.is_set() else CommandFailed("the model was closed under its pages")
        if event.error is not None:
            raise PageFailed(event.error)
        text = "".join(pieces)
        return Reading(
            text,
            tuple(self._model.boxes(text, *page.size)),
            event.detail,
            event.usage.prompt_tokens,
            event.usage.completion_tokens,
            {stage: round(seconds, 4) for stage, seconds in asdict(event.timings).items()},
            event.confidence,
        )

    def _submit(self, request: Request) -> Generation:
        assert self._model is not None
        while True:
            try:
                return self._model.submit(request)
            except QueueFull:  # more jobs than slots and queue together
                if self._stop.wait(QUEUE_SECONDS):
                    raise Interrupted from None
            except EngineClosed as error:
                raise CommandFailed(f"the model stopped: {error}; go on with --resume") from error

    def close(self) -> None:
        self._source.close()
        if self._model is not None:
            self._model.close()
            self._model = None
