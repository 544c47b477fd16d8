"""The rules of DeepSeek-OCR, bound to one exported model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from PIL import Image

from models.family import IMAGE_SLOT, Encode, Feeds, PreparedImage
from models.family_base import FamilyBase
from models.family_settings import FamilySettings
from models.grounding import Box, parse_boxes
from models.manifest import Manifest
from models.model_errors import InvalidInput
from models.pixels import noise

from .images import (
    ImageRules,
    ImageSettings,
    ViewRules,
    Views,
    lay_out,
    make_views,
    normalise,
    seen_pixels,
    token_count,
)
from .output import DEFAULT_TASK, TASKS
from .positions import view_inputs

# The n-gram size is the authors'; window and whitelist (<td>, </td>) are from their serving recipe: a guard over the
# whole page would forbid what tables and statements rightly repeat.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"no_repeat_ngram_window": 90, "no_repeat_ngram_whitelist": (128821, 128822)}
)

Rules = TypeVar("Rules", bound=ViewRules)


class DeepseekPrompts(FamilyBase):
    """The part of ``models.family.Family`` that all generations share: prompts, positions, answers, passes."""

    tasks = TASKS
    default_task = DEFAULT_TASK
    defaults = DEFAULTS

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.most_tokens = manifest.max_length

    def prompt_ids(self, prompt: str, image_tokens: Sequence[int], encode: Encode) -> list[int]:
        """The ``plain`` template: no roles, BOS in front, each text between slots encoded by itself."""
        texts = prompt.strip().split(IMAGE_SLOT)
        slots = len(texts) - 1
        if slots != len(image_tokens):
            raise InvalidInput(
                f"the prompt has {slots} {IMAGE_SLOT} slots for {len(image_tokens)} images; "
                f"write {IMAGE_SLOT} once for each image"
            )
        ids = [self.tokens.bos, *encode(texts[0])]
        for text, count in zip(texts[1:], image_tokens, strict=True):
            ids += [self.tokens.image] * count
            ids += encode(text)
        return ids

    @staticmethod
    def boxes(text: str, width: int, height: int) -> list[Box]:
        """See ``models.grounding``."""
        return parse_boxes(text, width, height)


def passes_of(views: Views, feeds: Callable[[np.ndarray], Feeds]) -> list[Callable[[], Feeds]]:
    """One vision pass for each tile, then one for the global view.

    Views are not batched: one view fills the machine, and between views the engine can decode other requests and notice
    a cancellation.
    """
    singles = [] if views.tiles is None else [views.tiles[i : i + 1] for i in range(len(views.tiles))]
    return [partial(feeds, view) for view in (*singles, views.whole)]


class DeepseekFamily(DeepseekPrompts, ABC, Generic[Rules]):
    """Adds what generations with tiles share of images; each generation cuts images and orders features itself."""

    rules_class: type[Rules]

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.rules = self.rules_class.model_validate(manifest.image)

    @abstractmethod
    def cut(self, image: Image.Image, settings: Mapping[str, Any]) -> Views:
        """See ``models.family.Family.prepare_image``."""

    @abstractmethod
    def token_count(self, views: Views) -> int:
        """Number of features of an image that was cut so."""

    @abstractmethod
    def assemble(self, views: Views, outputs: Sequence[Feeds]) -> np.ndarray:
        """The features of an image, [tokens, hidden], from the outputs of its passes."""

    @abstractmethod
    def view_inputs(self, side: int) -> Feeds:
        """Inputs of the vision graph beside the pixels, for views of ``side`` pixels."""

    def prepare_image(
        self, image: Image.Image, settings: Mapping[str, Any], prompt: str = "", images: int = 1
    ) -> PreparedImage:
        """Tiles and the global view as passes, see ``passes_of``."""
        return self.prepared(self.cut(image, settings))

    def prepared(self, views: Views) -> PreparedImage:
        """An image that has been cut."""
        return PreparedImage(passes_of(views, self.feeds), self.token_count(views), partial(self.assemble, views))

    def feeds(self, view: np.ndarray) -> Feeds:
        """Inputs of the vision graph for views [n, side, side, 3]."""
        return {"pixel_values": normalise(view, self.rules), **self.view_inputs(view.shape[1])}


class DeepseekOcr(DeepseekFamily[ImageRules]):
    """See ``models.family.Family``."""

    settings: ClassVar[type[FamilySettings]] = ImageSettings
    rules_class = ImageRules

    def cut(self, image: Image.Image, settings: Mapping[str, Any]) -> Views:
        return make_views(image, ImageSettings.of(settings), self.rules, self.most_tokens)

    def seen_pixels(self, settings: Mapping[str, Any], prompt: str = "") -> int:
        """Pixels of all tiles, or of the global view."""
        return seen_pixels(ImageSettings.of(settings), self.rules)

    def token_count(self, views: Views) -> int:
        return token_count(views, self.rules)

    def assemble(self, views: Views, outputs: Sequence[Feeds]) -> np.ndarray:
        """The tiles as one grid, then the global view."""
        *tiles, whole = outputs
        return lay_out(
            whole["features"][0],
            np.concatenate([tile["features"] for tile in tiles]) if tiles else None,
            views.grid,
            whole["image_newline"],
            whole["view_separator"],
        )

    def view_inputs(self, side: int) -> Feeds:
        return view_inputs(side, self.rules)

    def smallest_image(self, settings: Mapping[str, Any] | None = None) -> PreparedImage:
        """Without settings a single view of as few patches as one vision token has; with them an image with tiles."""
        if settings is None:
            cell = self.rules.patch_size * self.rules.downsample  # pixels of one vision token, a side
            side = cell * max(1, 32 // cell)  # 32 is the least that may be set
            return self.prepare_image(noise(side), {"crop_mode": False, "image_size": side})
        largest = self.rules.largest_side
        side = min(ImageSettings.of(settings).image_size or largest, largest) + 1  # cut, but into few tiles
        return self.prepare_image(noise(side), settings)
