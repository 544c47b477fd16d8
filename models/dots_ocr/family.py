"""The rules of dots.ocr and dots.mocr, bound to one exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from models.blocks import Block
from models.family import Encode, OutputFilter, PreparedImage
from models.family_settings import FamilySettings
from models.manifest import Manifest
from models.page_family import PageFamily
from models.patches import limited, resize, say_limit
from models.pixels import upright_size

from .images import MAX_PIXELS, ImageRules, ImageSettings, resized_size
from .output import DEFAULTS, OutputSettings, layout_blocks, output_filter
from .prompts import DEFAULT_TASK, TASKS, prompt_ids, sized_prompt


class Settings(ImageSettings, OutputSettings):
    """Settings of images and of answers."""


class DotsOcr(PageFamily[ImageRules]):
    """See ``models.family.Family``."""

    tasks = TASKS
    default_task = DEFAULT_TASK
    defaults = DEFAULTS
    settings: ClassVar[type[FamilySettings]] = Settings
    rules_class = ImageRules

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        say_limit(manifest.id, MAX_PIXELS, self.rules)

    def resized(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        return resize(image, limited(self.rules, Settings.of(settings), MAX_PIXELS), resized_size)

    def prepare_image(
        self, image: Image.Image, settings: Mapping[str, Any], prompt: str = "", images: int = 1
    ) -> PreparedImage:
        """One vision pass for the whole image; the answer's boxes are in pixels of the resized image."""
        page = super().prepare_image(image, settings)
        seen = (page.grid[1] * self.rules.factor, page.grid[0] * self.rules.factor)
        return replace(page, seen=seen, prompt=sized_prompt(prompt, upright_size(image), seen))

    def seen_pixels(self, settings: Mapping[str, Any], prompt: str = "") -> int:
        """Pixels of the resized image."""
        return limited(self.rules, Settings.of(settings), MAX_PIXELS).max_pixels

    def prompt_ids(self, prompt: str, image_tokens: Sequence[int], encode: Encode) -> list[int]:
        """Token ids in the authors' serving form; their own prompts to the letter."""
        return prompt_ids(prompt, image_tokens, self.prompt_rules, self.tokens.image, encode)

    @staticmethod
    def output(
        prompt: str, settings: Mapping[str, Any] = MappingProxyType({}), scale: tuple[float, float] = (1.0, 1.0)
    ) -> OutputFilter:
        """A layout as Markdown; see ``output``."""
        return output_filter(prompt, settings, scale)

    @classmethod
    def blocks(cls, text: str, width: int, height: int) -> tuple[Block, ...]:
        """The layout's cells."""
        return layout_blocks(text, width, height)
