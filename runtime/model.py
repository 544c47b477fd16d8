"""The Python API: open an exported folder, read images."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from PIL import Image

from models.asking import check_document, question, tasks_for
from models.blocks import Block, scaled, seen_per_pixel
from models.extraction import extraction, schema_text
from models.family import QUOTE_MARK, Family, OutputFilter, PreparedImage, Verbatim
from models.grounding import Box
from models.layout.step import page_defaults
from models.layout.task import is_document
from models.manifest import Manifest
from models.model_errors import ContextExceeded
from models.pixels import upright_rgb
from models.precedence import BY_NAME
from models.registration import ModelEntry
from models.registry import default_task, defaults_of, family_of
from models.settings import LEAST_CONTEXT, InferenceSettings
from models.turned import back, turned_blocks

from .engine import Engine
from .engines import EngineGroup
from .given_images import ImageLike, made_upright, open_image
from .grammar import Grammars
from .layout_step import entry_of, page_reader, with_layout
from .loading import load_engine, load_tokenizer, rows_without_token
from .locate import exported_folder
from .pages import Detector, PageGeneration
from .planning import spread
from .providers import each_card, find_device
from .requests import EngineLoad, Finished, Generation, Request, Result, TextDelta
from .runtime_errors import GenerationFailed
from .sequence import Sequence as EngineSequence
from .sequence import Vocabulary
from .warmup import WarmUp

log = logging.getLogger(__name__)

DEFAULT_VISION_CACHE_MB = 64.0


class Model:
    """One exported model, loaded. Its methods may be called from any number of threads, whose requests share the batch.

    Implements ``runtime.requests.TextModel``.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        device: str,
        threads: int | None,
        slots: int | None,
        max_queue: int,
        vision_cache_mb: float,
        max_context: int | None,
        warm_up: WarmUp | None,
        entry: ModelEntry,
        layout: Detector | None,
        many: bool = False,
    ) -> None:
        self._entry = entry
        self.manifest = manifest = manifest.with_context(max_context)
        devices = [find_device(name, threads) for name in each_card(device)]
        self.device = devices[0]
        self.device.require(folder, manifest)
        if many:
            devices = [one for each in devices for one in spread(manifest, each)]
        self.family = family_of(manifest)
        self._ignored: frozenset[str] = frozenset()  # ignored settings that the log has named
        self._tokenizer = load_tokenizer(folder)
        self.vocabulary = Vocabulary(
            self._tokenizer,
            frozenset(manifest.tokens.eos),
            manifest.tokens.image,
            rows_without_token(self._tokenizer, manifest.sizes.vocabulary),
        )
        self._grammars = Grammars(self._tokenizer, manifest.sizes.vocabulary, manifest.tokens.eos)
        engines = [
            load_engine(
                folder, manifest, self.family, one, slots=slots, max_queue=max_queue, vision_cache_mb=vision_cache_mb,
                warm_up=warm_up,
            )
            for one in devices
        ]  # fmt: skip
        self.slots = sum(engine.state.slots for engine in engines)
        self.engine: Engine | EngineGroup = engines[0] if len(engines) == 1 else EngineGroup(engines)
        self.pages = page_reader(self, entry, layout, self.device.name, threads)
        # A model that is not closed frees its memory when collected. Without waiting: a finalizer may run in any
        # thread.
        weakref.finalize(self, self.engine.close, wait=False).atexit = False

    @classmethod
    def open(
        cls, model: str | os.PathLike[str], *, dtype: str | None = None, device: str = "auto",
        threads: int | None = None, slots: int | None = None, max_queue: int = 64,
        vision_cache_mb: float = DEFAULT_VISION_CACHE_MB, max_context: int | None = None,
        warm_up: WarmUp | None = None, layout: str | os.PathLike[str] | Detector | None = None,
        entry: ModelEntry | None = None, many: bool = False,
    ) -> Self:  # fmt: skip
        """Load an exported model.

        Parameters
        ----------
        model
            the folder that ``ocr-onnx export`` published, or a model id, whose export is made first if there is none.
        dtype
            type of the weights, for an id; None takes config.toml's, or the default of the device and the size.
        device
            cpu, cuda, coreml (or metal), or auto for the best one that is there. cuda:1 is the second card, cuda:all
            an engine on each, with so many slots each.
        threads
            CPU threads of one operator; None takes one for each physical core, or as many as a container may use.
        slots
            requests decoded together; None chooses by device and by the memory that is free beside the weights.
        max_queue
            requests that may wait beyond those; more are refused with ``QueueFull``.
        vision_cache_mb
            megabytes of image features to keep, for an image that is asked about again; 0 keeps none.
        max_context
            tokens of prompt and answer together that a request may have; None, and more than it, is the model's own.
        warm_up
            none, quick or full: how much of what is slow the first time is run before this returns; None is quick on
            CUDA and none elsewhere.
        layout
            what takes pages apart for the task ``document``: the name of a detector (v2, v3), the folder of its export,
            anything that finds regions, or "none"; None is the model's own.
        entry
            what the catalogue and config.toml say of the model; None looks that up.
        many
            there are many pages, and nobody waits for a single one: a small model gets several engines on a CPU, of one
            thread and so many slots each.

        Raises
        ------
        ManifestError
            when the folder holds no whole export that this version can read, or a model's export cannot be made.
        RuntimeUnavailable
            when the device is not there, or the export has no graph for it.
        ValueError
            for a ``max_context`` that no request fits into.
        """
        if max_context is not None and max_context < LEAST_CONTEXT:
            raise ValueError(f"max_context is {max_context}; a page with its answer needs at least {LEAST_CONTEXT}")
        folder, found = exported_folder(model, dtype, device)
        manifest = Manifest.load(folder)
        entry, detector = with_layout(entry or found or entry_of(manifest), layout, folder)
        return cls(
            folder, manifest, device=device, threads=threads, slots=slots, max_queue=max_queue,
            vision_cache_mb=vision_cache_mb, max_context=max_context, warm_up=warm_up,
            entry=entry, layout=detector, many=many,
        )  # fmt: skip

    def submit(self, request: Request) -> Generation:
        """See ``TextModel.submit``."""
        if is_document(request.prompt):
            check_document(self._entry, len(request.images))
            return self.pages.submit(request)
        started = time.monotonic()
        self._name_ignored(request.settings)
        (images, sizes), limit = self._prepared(request), self.manifest.max_length
        prompt = images[-1].prompt or request.prompt if images else request.prompt
        prompt_ids = self.family.prompt_ids(prompt, [image.token_count for image in images], self._encode)
        if len(prompt_ids) >= limit:
            raise ContextExceeded(
                f"the prompt has {len(prompt_ids)} tokens ({sum(image.token_count for image in images)} of them for "
                f"images); the model takes {limit} with its answer: send fewer or smaller images, or less text"
            )
        blocks, scale = None, (1.0, 1.0)
        if len(images) == 1:
            page, seen = sizes[0], images[0].seen or sizes[0]
            blocks, scale = partial(_blocks_on, self.family, page=page, seen=seen), seen_per_pixel(seen, page)
        grammar, settings = None, request.settings
        if request.schema is not None:
            grammar = self._grammars.follow(request.schema)
            settings = replace(settings, no_repeat_ngram_size=0)  # keys of a list's items repeat, and must
        own_words = request.raw or grammar is not None
        output = Verbatim() if own_words else self.family.output(request.prompt, settings.family, scale)
        sequence = EngineSequence(
            prompt_ids, images, settings, self.vocabulary, limit, time.monotonic() - started, output,
            self.family.positions(prompt_ids, images), request.client, request.alternatives,
            self.family.window(request.settings.family), blocks, grammar, request.patient,
        )  # fmt: skip
        self.engine.submit(sequence)
        return sequence

    def read(
        self, image: ImageLike | Sequence[ImageLike], prompt: str | None = None, *,
        task: str | None = None, raw: bool = False, schema: Any = None, **settings: Any,
    ) -> Result:  # fmt: skip
        """Read one or several images and return the whole answer.

        Parameters
        ----------
        image
            a path, an encoded image as bytes, a PIL image, or a list of those.
        prompt
            one ``<image>`` slot for each image, in order; None takes the task's prompt. Beside a task it is the text
            that the task takes.
        task
            one of ``tasks``; None without a prompt is ``default_task``.
        raw
            the text as the model writes it, not as its family presents it.
        schema
            a JSON schema, as text or as what that stands for; the answer is JSON that follows it. For models that can
            be asked for fields.
        settings
            fields of ``models.settings.InferenceSettings``; the rest are the family's defaults, or the dataclass's.

        Raises
        ------
        InvalidInput
            for an image, a prompt or a setting that cannot be taken.
        QueueFull, EngineClosed
            see ``TextModel.submit``.
        GenerationFailed
            when the engine failed on this request.
        """
        request, rotated = self._asked(image, prompt, task, raw, schema, settings)
        sizes = [one.size for one in request.images]
        sequence = self.submit(request)
        del request  # no variable keeps a picture alive
        pieces: list[str] = []
        try:
            while not isinstance(event := sequence.next_event(), Finished):
                if event is not None:
                    pieces.append(event.text)
        finally:
            sequence.cancel()  # at Ctrl-C the rest is not wanted
        _raise_failure(event)
        if len(sizes) == 1:
            event = replace(event, blocks=turned_blocks(event.blocks, sizes[0], back(rotated[0])))
        return Result("".join(pieces), _tokens_of(sequence), event, rotated)

    def stream(
        self, image: ImageLike | Sequence[ImageLike], prompt: str | None = None, *,
        task: str | None = None, raw: bool = False, schema: Any = None, **settings: Any,
    ) -> Iterator[str]:  # fmt: skip
        """Like ``read``, but in pieces as the text is decoded. Closing the iterator cancels the request."""
        sequence = self.submit(self._asked(image, prompt, task, raw, schema, settings)[0])
        try:
            while not isinstance(event := sequence.next_event(), Finished):
                if isinstance(event, TextDelta):
                    yield event.text
            _raise_failure(event)
        finally:
            sequence.cancel()

    @property
    def tasks(self) -> Mapping[str, str]:
        """Names of the tasks that the model knows, with their prompts."""
        return tasks_for(self._entry)

    @property
    def default_task(self) -> str:
        """The task of an image without a prompt: the catalogue entry's, else the family's."""
        return default_task(self._entry)

    def check(self, prompt: str, settings: InferenceSettings) -> None:
        """See ``TextModel.check``."""
        if is_document(prompt):
            check_document(self._entry)
            for of_part in self.pages.prompts.values():
                self.check(of_part, settings)
            return
        image = self.family.smallest_image(settings.family)
        self.family.prompt_ids(prompt, [image.token_count], self._encode)

    def boxes(self, text: str, width: int, height: int) -> list[Box]:
        """See ``TextModel.boxes``."""
        return self.family.boxes(text, width, height)

    def filter_for(self, prompt: str, settings: InferenceSettings) -> OutputFilter:
        """See ``runtime.pages.Recogniser``."""
        return self.family.output(prompt, settings.family)

    def drain(self, timeout: float | None = None) -> bool:
        """See ``TextModel.drain``."""
        return self.engine.drain(timeout)

    def close(self) -> None:
        """See ``TextModel.close``."""
        self.pages.close()
        self.engine.close()

    @property
    def alive(self) -> bool:
        """See ``TextModel.alive``."""
        return self.engine.alive

    @property
    def loads(self) -> list[EngineLoad]:
        """See ``TextModel.loads``."""
        return self.engine.loads

    @property
    def queue_depth(self) -> int:
        """Requests waiting for the engine."""
        return self.engine.queue_depth

    @property
    def active(self) -> int:
        """Requests being encoded, prefilled or decoded."""
        return self.engine.active

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _asked(
        self, image: ImageLike | Sequence[ImageLike], prompt: str | None, task: str | None, raw: bool, schema: Any,
        settings: dict[str, Any],
    ) -> tuple[Request, tuple[float, ...]]:  # fmt: skip
        """The request for the engine, and by how many degrees clockwise each image was turned."""
        images = [image] if isinstance(image, (str, os.PathLike, bytes, Image.Image)) else list(image)
        if schema is not None:
            schema = schema_text(schema)
            prompt = extraction(self._entry, task, prompt or "", schema, len(images)).prompt
        elif task is not None or prompt is None:
            prompt = question(self._entry, task, prompt or "", len(images)).prompt
        defaults = {**defaults_of(self.manifest.family, len(images)), **page_defaults(self._entry, prompt)}
        values = InferenceSettings().override({**defaults, **settings})
        opened, rotated = [open_image(one) for one in images], (0.0,) * len(images)
        if values.orient == "auto":
            opened, rotated = made_upright([upright_rgb(one, values.transparency) for one in opened])
        return Request(prompt, opened, values, raw, schema=schema), rotated

    def _prepared(self, request: Request) -> tuple[list[PreparedImage], list[tuple[int, int]]]:
        """The request's images, prepared one after the other, and their sizes; pictures are not kept."""
        count, tokens, prompt, prepared, sizes = len(request.images), 0, request.prompt, [], []
        for image in request.images:
            opaque = upright_rgb(image, request.settings.transparency)
            prepared.append(self.family.prepare_image(opaque, request.settings.family, prompt, count))
            prompt = prepared[-1].prompt or prompt
            sizes.append(opaque.size)
            tokens += prepared[-1].token_count
            if tokens >= self.manifest.max_length:
                raise ContextExceeded(
                    f"{len(prepared)} of {count} images have {tokens} tokens; the model takes "
                    f"{self.manifest.max_length} with its answer: send fewer or smaller images"
                )
        return prepared, sizes

    def _name_ignored(self, settings: InferenceSettings) -> None:
        """Log once for each setting that belongs to other families."""
        others = settings.family.keys() - self.family.settings.model_fields.keys() - self._ignored
        names = sorted(name for name in others if settings.family[name] != BY_NAME[name].default)
        if names:
            self._ignored |= frozenset(names)
            log.info("model %s has no use for %s; ignored", self.manifest.id, ", ".join(names))

    def _encode(self, text: str) -> list[int]:
        # Text that quotes the slot must not be encoded as the image token.
        pieces = text.split(QUOTE_MARK)
        return [token for piece in pieces for token in self._tokenizer.encode(piece, add_special_tokens=False).ids]


def _blocks_on(family: Family, text: str, page: tuple[int, int], seen: tuple[int, int]) -> tuple[Block, ...]:
    """Finds the blocks in an answer; sizes are (width, height). A function that does not keep the model alive."""
    found = family.blocks(text, *seen)
    return found if seen == page else scaled(found, seen, page)


def _tokens_of(generation: Generation) -> list[int]:
    """All generated token ids; of a page read by its parts, in the parts' order."""
    if isinstance(generation, PageGeneration):
        return [token for one in generation.generations for token in _tokens_of(one)]
    assert isinstance(generation, EngineSequence)
    return list(generation.tokens)


def _raise_failure(finished: Finished) -> None:
    if finished.error is not None:
        raise GenerationFailed(finished.error)
