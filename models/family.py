"""What every model family provides, so that runtime and server never ask which family they have.

A family turns images into vision passes and features, and prompts into token ids. It holds no weights and runs no
graph: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image

from .blocks import Block
from .family_settings import FamilySettings
from .grounding import Box
from .model_errors import InvalidInput

Feeds = Mapping[str, np.ndarray]
Encode = Callable[[str], list[int]]  # text -> token ids, without special tokens around it

IMAGE_SLOT = "<image>"
QUOTE_MARK = "\ufdd0"  # stands for nothing in Unicode
QUOTED_SLOT = f"<image{QUOTE_MARK}>"  # the same letters as text: the runtime encodes what is before and after the mark
TEXT_SLOT = "{text}"  # in the prompt of a task that is about words of the client's own


def taken(feeds: Feeds, inputs: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of a pass's feeds that a graph takes: graphs for different devices are fed different things."""
    return {name: feeds[name] for name in inputs}


def kept(feeds: Feeds) -> Feeds:
    """Arrays that come with every view of a size, made once: read-only, so that a device may keep copies of them."""
    for array in feeds.values():
        array.flags.writeable = False
    return feeds


@dataclass(frozen=True)
class PreparedImage:
    """One image, cut and scaled, ready for the vision graph.

    passes : make what each run of the vision graph is fed, in order; called when its turn comes.
    assemble : the outputs of those runs, in the same order -> features [token_count, hidden], as the decoder sees them.
      It puts rows in order and changes none of them; where they are on a GPU it is given their numbers, [..., 1] each.
    grid : (rows, columns) of the features, for a family whose positions follow them.
    seen : (width, height) of the picture that the answer's places are pixels of; None: places are parts of the page.
    prompt : the request's, with what it says of this image's size written in; None: it says nothing of that.
    """

    passes: Sequence[Callable[[], Feeds]]
    token_count: int
    assemble: Callable[[Sequence[Feeds]], np.ndarray]
    grid: tuple[int, int] = (0, 0)
    seen: tuple[int, int] | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class Positions:
    """Where the tokens of a prompt stand, as rotary embeddings count.

    axes : [axes, tokens] int64; a family without axes of its own has one. next : of the first generated token, from
    which the answer counts on, in every axis alike.
    """

    axes: np.ndarray
    next: int


def counted(tokens: int) -> Positions:
    """Token after token, from 0 on."""
    return Positions(np.arange(tokens)[None], tokens)


class OutputFilter(Protocol):
    """Turns what a model writes into what people want to read, piece by piece.

    All that ``push`` and ``finish`` return, joined, depends on the whole text only, not on where it was cut.
    """

    def push(self, text: str) -> str:
        """Take the next piece; returns what is certain now, perhaps nothing."""

    def finish(self) -> str:
        """The text is over; returns what was held back."""


class Verbatim:
    """The filter that changes nothing."""

    def push(self, text: str) -> str:
        return text

    def finish(self) -> str:
        return ""


class Family(Protocol):
    """The rules of one model family, bound to one exported model's image settings and tokens.

    What needs no exported model (tasks, defaults, output, boxes) stands on the class.
    """

    # Name of a task -> its prompt, with one IMAGE_SLOT for all images and TEXT_SLOT where it takes words.
    tasks: Mapping[str, str]
    default_task: str
    defaults: Mapping[str, Any]  # inference settings where nobody sets any: config.toml and all sources above it win
    defaults_for_several: ClassVar[Mapping[str, Any]]  # over those, for a request with several images
    joint_tasks: ClassVar[frozenset[str]]  # those that read all pages of a document in one generation
    settings: ClassVar[type[FamilySettings]]  # what a request can set beside every model's settings

    def prepare_image(
        self, image: Image.Image, settings: Mapping[str, Any], prompt: str = "", images: int = 1
    ) -> PreparedImage:
        """Orient, cut and scale one image.

        settings : families' settings by name; the family takes its own. prompt, images : of the request that the image
        belongs to, for a family that cuts by them.

        Raises
        ------
        InvalidInput
            when the image or a setting cannot be taken.
        """

    def seen_pixels(self, settings: Mapping[str, Any], prompt: str = "") -> int:
        """Most pixels of an image that the tower is fed: one that has more is reduced to these.

        settings, prompt : as those of ``prepare_image``. Raises InvalidInput when a setting cannot be taken.
        """

    def smallest_image(self, settings: Mapping[str, Any] | None = None) -> PreparedImage:
        """The least that the vision tower takes, for a look at its graph.

        settings : what else the image must show: the smallest one that is cut in every way that these ask for, to find
        out whether images can be.

        Raises
        ------
        InvalidInput
            when a setting cannot be taken.
        """

    def prompt_ids(self, prompt: str, image_tokens: Sequence[int], encode: Encode) -> list[int]:
        """Token ids of the whole prompt, each image slot expanded to as many placeholders as the image has features.

        Raises
        ------
        InvalidInput
            when slots and images do not match in number.
        """

    def positions(self, prompt_ids: Sequence[int], images: Sequence[PreparedImage]) -> Positions:
        """Where each token of the prompt stands, none further than its index, and where the answer goes on."""

    def window(self, settings: Mapping[str, Any]) -> int | None:
        """How many tokens of its answer a token of it sees, itself among them, beside the prompt; None: all."""

    @staticmethod
    def output(
        prompt: str, settings: Mapping[str, Any] = MappingProxyType({}), scale: tuple[float, float] = (1.0, 1.0)
    ) -> OutputFilter:
        """A fresh filter for the answer to ``prompt``.

        settings : families' settings by name. scale : pixels across and down of the picture that the answer's places
        are in, for each one of the page.
        """

    @staticmethod
    def boxes(text: str, width: int, height: int) -> list[Box]:
        """The places that an answer names on a page of ``width`` x ``height`` pixels, where its presented text does."""

    @staticmethod
    def blocks(text: str, width: int, height: int) -> tuple[Block, ...]:
        """The blocks that an answer (as the model wrote it) names, in reading order; none where it says no places.

        width, height : of the page, or of what the model saw of it (``PreparedImage.seen``); boxes are pixels of that.
        """


def task_prompt(tasks: Mapping[str, str], task: str, text: str = "", images: int = 1) -> str:
    """The prompt of a task, with a slot for each of ``images`` images.

    text : the client's own words, for a task that takes some.

    Raises
    ------
    InvalidInput
        for a task that the model does not have, and for words that are missing or that nobody asked for.
    """
    if task not in tasks:
        raise InvalidInput(f"task {task[:60]!r} is unknown to this model; its tasks are {', '.join(tasks)}")
    template, text = tasks[task], text.strip()
    if TEXT_SLOT in template and not text:
        raise InvalidInput(f"task {task!r} needs a text that says what it is about; give that as the prompt, beside it")
    if TEXT_SLOT not in template and text:
        raise InvalidInput(f"task {task!r} takes no text beside it; give either the task or a prompt of your own")
    if IMAGE_SLOT in text:
        raise InvalidInput(f"a task puts {IMAGE_SLOT} in its place by itself; leave it out of the text")
    return template.replace(IMAGE_SLOT, "\n".join([IMAGE_SLOT] * images)).replace(TEXT_SLOT, text)
