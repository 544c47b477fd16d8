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

# Where a request stands: in the queue, encoding images, or feeding the prompt and decoding the answer.
Stage = Literal["queued", "seeing", "reading"]


class Images(Protocol):
    """Pictures in order. ``submit`` iterates over them once, so each picture may be made when its turn comes."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Image.Image]: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt with its images. ``prompt`` holds one ``<image>`` slot for each image, in order."""

    prompt: str
    images: Images = ()
    settings: InferenceSettings = InferenceSettings()
    raw: bool = False  # give the model's own text, not the family's presentation
    client: str = ""  # the client: turns are shared evenly among clients
    alternatives: int | None = None  # alternatives told with each token's log-probability, at most 20; None: neither
    rules: PageRules | None = None  # layout rules of a page that is read by its parts; None: the model's
    schema: str | None = None  # JSON schema, as text, that the answer must follow
    patient: bool = False  # one of many requests whose total time counts, and not its own


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
    blocks: float = 0.0  # from there to the end of the last part; the stages above are sums over all parts

    def by_stage(self) -> dict[str, float]:
        """Seconds by stage, as in JSON; without the stages of pages read by their parts where there were none."""
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
    logprobs: tuple[TokenLogprob, ...] = ()  # log-probabilities of those tokens, where asked for


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every generation."""

    reason: FinishReason
    detail: FinishDetail
    usage: Usage
    timings: Timings
    error: str | None = None  # set when detail is "error"
    confidence: Confidence | None = None  # None: nothing was generated
    blocks: tuple[Block, ...] = ()  # blocks of the page, in reading order, for a request with one image; empty: unknown


@dataclass(frozen=True, slots=True)
class Result:
    """A whole answer."""

    text: str
    tokens: list[int] = field(repr=False)
    finished: Finished
    rotated: tuple[float, ...] = ()  # degrees clockwise by which each image was turned; boxes fit the unturned image


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The load of one engine; a model has an engine for each of its cards."""

    device: str  # "cpu", "cuda:1"
    slots: int  # rows that are decoded together
    active: int  # requests being encoded, prefilled or decoded
    queued: int  # requests in the queue
    alive: bool


class Generation(Protocol):
    """A running request, as its caller sees it. For one consumer thread."""

    def next_event(self, timeout: float | None = None) -> TextDelta | Finished | None:
        """Wait up to ``timeout`` seconds (None: for ever) for the next event; None when nothing came."""

    @property
    def stage(self) -> Stage:
        """Where the request stands now."""

    def cancel(self) -> None:
        """End the request; a ``Finished`` with reason ``cancelled`` follows at once. Idempotent."""


def events_so_far(generation: Generation, timeout: float) -> Iterator[TextDelta | Finished]:
    """Events that are there, or the first one within ``timeout`` seconds; no event follows ``Finished``."""
    while (event := generation.next_event(timeout)) is not None:
        yield event
        if isinstance(event, Finished):
            return
        timeout = 0.0


class TextModel(Protocol):
    """The part of ``runtime.Model`` that the server uses; tests use a scripted double."""

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
        """Check that pages can be read with this prompt and these settings, without reading one.

        Raises
        ------
        models.model_errors.InvalidInput
            when every page would be refused.
        """

    def boxes(self, text: str, width: int, height: int) -> list[Box]:
        """Boxes that an answer names on its page of ``width`` x ``height`` pixels."""

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until no request is queued or running; False when ``timeout`` seconds passed first."""

    def close(self) -> None:
        """Cancel requests in flight, stop the engine's threads and free sessions and caches. Idempotent."""

    @property
    def alive(self) -> bool:
        """Whether requests are taken: the model is open and its engine has not failed."""

    @property
    def slots(self) -> int:
        """Requests decoded together."""

    @property
    def loads(self) -> list[EngineLoad]:
        """The load of each engine."""

    @property
    def queue_depth(self) -> int:
        """Requests waiting for the engine."""

    @property
    def active(self) -> int:
        """Requests being encoded, prefilled or decoded."""
