"""The rules of PaddleOCR-VL, bound to one exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from models.blocks import Block, blocks_of
from models.chat_template import PromptRules, chat_prompt
from models.family import IMAGE_SLOT, Encode, Feeds, OutputFilter, Positions, PreparedImage
from models.family_settings import FamilySettings
from models.grounding import Box
from models.locations import parse_locations
from models.manifest import Manifest
from models.patches import limited, normalise, resize, token_positions
from models.pixels import noise

from .images import ImageRules, ImageSettings, for_spotting, resized_size
from .output import DEFAULT_TASK, DEFAULTS, SPOTTING, TASKS, output_filter
from .positions import page_inputs


class PaddleOcrVl:
    """See ``models.family.Family``."""

    tasks = TASKS
    default_task = DEFAULT_TASK
    defaults = DEFAULTS
    defaults_for_several: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    joint_tasks: ClassVar[frozenset[str]] = frozenset()
    settings: ClassVar[type[FamilySettings]] = ImageSettings

    def __init__(self, manifest: Manifest) -> None:
        self.tokens = manifest.tokens
        self.rules = ImageRules.model_validate(manifest.image)
        self.prompt_rules = PromptRules.model_validate(manifest.prompt)

    def prepare_image(
        self, image: Image.Image, settings: Mapping[str, Any], prompt: str = "", images: int = 1
    ) -> PreparedImage:
        """One vision pass for the whole image; text is spotted in a larger one."""
        own = ImageSettings.of(settings)
        rules = limited(self.rules, own)
        if prompt.replace(IMAGE_SLOT, "").strip() == SPOTTING.replace(IMAGE_SLOT, ""):
            image, rules = for_spotting(image, rules, own)
        pixels = resize(image, rules, resized_size)
        rows, columns = (side // self.rules.factor for side in pixels.shape[:2])
        return PreparedImage(
            [partial(self._feeds, pixels)], rows * columns, lambda outputs: outputs[0]["features"], (rows, columns)
        )

    def smallest_image(self, settings: Mapping[str, Any] | None = None) -> PreparedImage:
        """A single block of patches; every image is cut the same way, so settings need no larger one."""
        return self.prepare_image(noise(1), {"min_pixels": self.rules.factor**2} if settings is None else settings)

    def _feeds(self, pixels: np.ndarray) -> Feeds:
        rows, columns = (side // self.rules.patch_size for side in pixels.shape[:2])
        return {"pixel_values": normalise(pixels, self.rules), **page_inputs(rows, columns, self.rules)}

    def prompt_ids(self, prompt: str, image_tokens: Sequence[int], encode: Encode) -> list[int]:
        """The checkpoint's own chat template around one message: the images, then the text."""
        return chat_prompt(prompt, image_tokens, self.prompt_rules, self.tokens.image, encode)

    def positions(self, prompt_ids: Sequence[int], images: Sequence[PreparedImage]) -> Positions:
        """Time, row and column of each token."""
        return token_positions(prompt_ids, self.tokens.image, images)

    def window(self, settings: Mapping[str, Any]) -> int | None:
        """None: attention is full."""
        return None

    @staticmethod
    def output(
        prompt: str, settings: Mapping[str, Any] = MappingProxyType({}), scale: tuple[float, float] = (1.0, 1.0)
    ) -> OutputFilter:
        """Tables as HTML, formulas between dollars; see ``output``."""
        return output_filter()

    @staticmethod
    def boxes(text: str, width: int, height: int) -> list[Box]:
        """Of the lines that it spots; asked for anything else, the model says nothing of places."""
        return parse_locations(text, width, height)

    @staticmethod
    def blocks(text: str, width: int, height: int) -> tuple[Block, ...]:
        """Of its boxes."""
        return blocks_of(parse_locations(text, width, height))
