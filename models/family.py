"""The interface of every model family, so that runtime and server never ask which family they have.

A family turns images into vision passes and features, and prompts into token ids. Arrays in, arrays out: families hold
no weights and run no graphs.
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
QUOTED_SLOT = f"<image{QUOTE_MARK}>"  # the slot quoted as text: the runtime encodes the texts before and after the mark
TEXT_SLOT = "{text}"  # slot for the client's own words in a task's prompt


def taken(feeds: Feeds, inputs: Iterable[str]) -> dict[str, np.ndarray]:
    """The feeds of a pass that a graph takes: graphs for different devices have different inputs."""
    return {name: feeds[name] for name in inputs}


def kept(feeds: Feeds) -> Feeds:
    """Mark arrays that come with every view of a size as read-only, so that a device may keep copies."""
    for array in feeds.values():
        array.flags.writeable = False
    return feeds


@dataclass(frozen=True)
class PreparedImage:
    """One image, cut and scaled, ready for the vision graph.

    passes : functions that make the inputs of each run of the vision graph, in order; called when the run's turn comes.
    assemble : the outputs of those runs, in the same order -> features [token_count, hidden] for the decoder.
      Puts rows in order and changes none; where features are on a GPU, ``assemble`` gets row numbers, [..., 1] each.
    grid : (rows, columns) of the features, for a family whose positions follow them.
    seen : (width, height) of the picture in whose pixels the answer gives boxes; None: boxes are relative to the page.
    prompt : the request's prompt with this image's size filled in; None: the prompt has no size.
    """

    passes: Sequence[Callable[[], Feeds]]
    token_count: int
    assemble: Callable[[Sequence[Feeds]], np.ndarray]
    grid: tuple[int, int] = (0, 0)
    seen: tuple[int, int] | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class Positions:
    """Positions of a prompt's tokens for rotary embeddings.

    axes : [axes, tokens] int64; one axis by default. next : position of the first generated token, in every axis; the
    answer counts on from there.
    """

    axes: np.ndarray
    next: int


def counted(tokens: int) -> Positions:
    """Token after token, from 0 on."""
    return Positions(np.arange(tokens)[None], tokens)


class OutputFilter(Protocol):
    """Turns a model's raw text into the text for people, piece by piece.

    The joined results of ``push`` and ``finish`` depend on the whole text only, not on where the text was cut.
    """

    def push(self, text: str) -> str:
        """Take the next piece; returns the text that is certain now, perhaps empty."""

    def finish(self) -> str:
        """End the text; returns what was held back."""


class Verbatim:
    """The filter that changes nothing."""

    def push(self, text: str) -> str:
        return text

    def finish(self) -> str:
        return ""


class Family(Protocol):
    """The rules of one model family, bound to one exported model's image settings and tokens.

    Members that need no exported model (tasks, defaults, output, boxes) are on the class.
    """

    # Name of a task -> its prompt, with one IMAGE_SLOT for all images and TEXT_SLOT where it takes words.
    tasks: Mapping[str, str]
    default_task: str
    defaults: Mapping[str, Any]  # the weakest inference settings: config.toml and all stronger sources win
    defaults_for_several: ClassVar[Mapping[str, Any]]  # laid over ``defaults`` for a request with several images
    joint_tasks: ClassVar[frozenset[str]]  # tasks that read all pages of a document in one generation
    settings: ClassVar[type[FamilySettings]]  # settings of this family beside those of every model

    def prepare_image(
        self, image: Image.Image, settings: Mapping[str, Any], prompt: str = "", images: int = 1
    ) -> PreparedImage:
        """Orient, cut and scale one image.

        settings : families' settings by name; the family takes its own. prompt, images : the request's prompt and
        number of images, for a family whose cutting depends on them.

        Raises
        ------
        InvalidInput
            when the image or a setting cannot be taken.
        """

    def seen_pixels(self, settings: Mapping[str, Any], prompt: str = "") -> int:
        """Most pixels of an image that the tower sees: larger images are reduced.

        settings, prompt : as those of ``prepare_image``. Raises InvalidInput when a setting cannot be taken.
        """

    def smallest_image(self, settings: Mapping[str, Any] | None = None) -> PreparedImage:
        """The smallest image that the vision tower takes, for a test of its graph.

        settings : for a test of these settings: then the smallest image that is cut in every way that they ask for.

        Raises
        ------
        InvalidInput
            when a setting cannot be taken.
        """

    def prompt_ids(self, prompt: str, image_tokens: Sequence[int], encode: Encode) -> list[int]:
        """Token ids of the whole prompt, with each image slot expanded to one placeholder for each feature.

        Raises
        ------
        InvalidInput
            when slots and images do not match in number.
        """

    def positions(self, prompt_ids: Sequence[int], images: Sequence[PreparedImage]) -> Positions:
        """Positions of the prompt's tokens, none above its index, and of the answer's first token."""

    def window(self, settings: Mapping[str, Any]) -> int | None:
        """Tokens of the answer that each of them attends to, itself included, beside the prompt; None: all."""

    @staticmethod
    def output(
        prompt: str, settings: Mapping[str, Any] = MappingProxyType({}), scale: tuple[float, float] = (1.0, 1.0)
    ) -> OutputFilter:
        """A fresh filter for the answer to ``prompt``.

        settings : families' settings by name. scale : pixels of the picture in which the answer gives boxes for each
        pixel of the page, across and down.
        """

    @staticmethod
    def boxes(text: str, width: int, height: int) -> list[Box]:
        """The boxes that a presented answer names on a page of ``width`` x ``height`` pixels."""

    @staticmethod
    def blocks(text: str, width: int, height: int) -> tuple[Block, ...]:
        """The blocks that the model's raw answer names, in reading order; none for an answer without boxes.

        width, height : of the page, or of the picture that the model saw (``PreparedImage.seen``); boxes are in its
        pixels.
        """


def task_prompt(tasks: Mapping[str, str], task: str, text: str = "", images: int = 1) -> str:
    """The prompt of a task, with a slot for each of ``images`` images.

    text : the client's own words, for a task that takes some.

    Raises
    ------
    InvalidInput
        for a task that the model does not have, and for words that are missing or not taken.
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
