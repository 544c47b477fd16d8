"""What goes into the engine and what comes out: requests, events, results. Used by the Python API and the server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol

from PIL import Image

from models.blocks import Block
from models.grounding import Box
from models.layout.page_rules import PageRules
from models.settings import InferenceSettings

from .confidence import Confidence, TokenLogprob

FinishReason = Literal["stop", "length", "cancelled"]

# Why exactly a generation ended, finer than the finish reason.
# eos: end-of-sequence token · stop_string · max_tokens: the request's budget · context: the model's own limit ·
# loop: the tail repeated itself · deadline · cancelled · error: the engine failed · no_image: there was nothing to read
FinishDetail = Literal[
    "eos", "stop_string", "max_tokens", "context", "loop", "deadline", "cancelled", "error", "no_image"
]


REASONS: Mapping[FinishDetail, FinishReason] = MappingProxyType(
    {
        "eos": "stop", "stop_string": "stop", "no_image": "stop", "loop": "stop", "max_tokens": "length",
        "context": "length", "deadline": "length", "cancelled": "cancelled", "error": "cancelled",
    }
)  # fmt: skip

# Where a request stands: it waits, its images are being encoded, or its prompt is fed and its answer written.
Stage = Literal["queued", "seeing", "reading"]


class Images(Protocol):
    """Pictures in order. They are gone through once, while the request is taken, and each may be made in its turn."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Image.Image]: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt with its images. ``prompt`` holds one ``<image>`` slot for each image, in order."""

    prompt: str
    images: Images = ()
    settings: InferenceSettings = InferenceSettings()
    raw: bool = False  # the text as the model writes it, not as its family presents it
    client: str = ""  # whose request it is: turns are shared out evenly among clients
    alternatives: int | None = None  # told of each token with its log-probability, at most 20; None: neither is told
    rules: PageRules | None = None  # of a page that is read by its parts; None: the model's
    schema: str | None = None  # JSON text of a schema that the answer follows, to its last token
    patient: bool = False  # one of many that nobody looks at before the end: when all are done counts, not each


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds spent on one request, by stage."""

    queued: float = 0.0  # from submission until the engine took it up
    prepare: float = 0.0  # image resizing and tokenizing, on the caller's thread
    vision: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0  # from the first token to the last
    first_token: float = 0.0  # from submission to the first token
    layout: float = 0.0  # finding the parts of a page that is read by its parts
    blocks: float = 0.0  # from there to the end of the last of them: the stages above are sums over all

    def by_stage(self) -> dict[str, float]:
        """As JSON has them; those of pages that are read by their parts for such pages only."""
        return {name: seconds for name, seconds in asdict(self).items() if seconds or name not in ("layout", "blocks")}


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens really fed (BOS and image tokens included) and tokens generated (the end token not counted)."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0  # part of prompt_tokens


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer; the pieces of a generation joined are its text."""

    text: str
    token_count: int = 1  # tokens behind this piece
    logprobs: tuple[TokenLogprob, ...] = ()  # of those tokens, where they were asked for


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every generation."""

    reason: FinishReason
    detail: FinishDetail
    usage: Usage
    timings: Timings
    error: str | None = None  # set when detail is "error"
    confidence: Confidence | None = None  # None: nothing was generated
    blocks: tuple[Block, ...] = ()  # of the page, in reading order, for a request with one image; none: nobody knows


@dataclass(frozen=True, slots=True)
class Result:
    """A whole answer."""

    text: str
    tokens: list[int] = field(repr=False)
    finished: Finished
    rotated: tuple[float, ...] = ()  # degrees clockwise by which each image was turned; places are on it as it came


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What one engine has to do. A model has one for each card that it is on."""

    device: str  # "cpu", "cuda:1"
    slots: int  # rows that are decoded together
    active: int  # requests being encoded, prefilled or decoded
    queued: int  # requests for which nothing has been done yet
    alive: bool


class Generation(Protocol):
    """A running request, as its caller sees it. Safe to use from one consumer thread beside the engine's."""

    def next_event(self, timeout: float | None = None) -> TextDelta | Finished | None:
        """Wait up to ``timeout`` seconds (None: for ever) for the next event; None when nothing came."""

    @property
    def stage(self) -> Stage:
        """Where the request stands now."""

    def cancel(self) -> None:
        """End the request; a ``Finished`` with reason ``cancelled`` follows at once. Idempotent."""


def events_so_far(generation: Generation, timeout: float) -> Iterator[TextDelta | Finished]:
    """What a generation has to say by now, or first within ``timeout`` seconds; nothing comes after ``Finished``."""
    while (event := generation.next_event(timeout)) is not None:
        yield event
        if isinstance(event, Finished):
            return
        timeout = 0.0


class TextModel(Protocol):
    """The part of ``runtime.Model`` that the server uses; tests put a scripted one in its place."""

    def submit(self, request: Request) -> Generation:
        """Prepare the images and the prompt on this thread, then queue.

        Raises
        ------
        models.model_errors.InvalidInput
            the prompt, an image or a setting cannot be taken.
        runtime.runtime_errors.QueueFull
            too many requests are waiting.
        runtime.runtime_errors.EngineClosed
            the model was closed.
        """

    def check(self, prompt: str, settings: InferenceSettings) -> None:
        """Find out whether pages can be read with this prompt and these settings, without reading one.

        Raises
        ------
        models.model_errors.InvalidInput
            when every page would be refused.
        """

    def boxes(self, text: str, width: int, height: int) -> list[Box]:
        """The places that an answer names on its page of ``width`` x ``height`` pixels."""

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until no request is queued or running; False when ``timeout`` seconds passed first."""

    def close(self) -> None:
        """Cancel what runs, stop the engine thread and free the sessions and caches. Idempotent."""

    @property
    def alive(self) -> bool:
        """Whether it takes requests: it is neither closed nor has its engine failed."""

    @property
    def slots(self) -> int:
        """Requests decoded together."""

    @property
    def loads(self) -> list[EngineLoad]:
        """What each of its engines has to do."""

    @property
    def queue_depth(self) -> int:
        """Requests waiting for the engine."""

    @property
    def active(self) -> int:
        """Requests being encoded, prefilled or decoded."""
