"""The rules of LightOnOCR, bound to one exported model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from models.blocks import Block
from models.family import OutputFilter, PreparedImage
from models.family_settings import FamilySettings
from models.page_family import PageFamily
from models.patches import resize

from .images import ImageRules, ImageSettings, resized_size
from .output import DEFAULT_TASK, DEFAULTS, PLACES, TASKS, OutputSettings, marked_blocks, output_filter


class Settings(ImageSettings, OutputSettings):
    """Settings of images and of answers."""


class LightOnOcr(PageFamily[ImageRules]):
    """See ``models.family.Family``."""

    tasks = TASKS
    default_task = DEFAULT_TASK
    defaults = DEFAULTS
    settings: ClassVar[type[FamilySettings]] = Settings
    rules_class = ImageRules

    def resized(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        rules = self.rules.model_copy(update={"max_pixels": Settings.of(settings).max_pixels})
        return resize(image, rules, resized_size)

    def prepare_image(
        self, image: Image.Image, settings: Mapping[str, Any], prompt: str = "", images: int = 1
    ) -> PreparedImage:
        """One vision pass for the whole image; the answer's boxes are in thousandths of the image."""
        return replace(super().prepare_image(image, settings), seen=PLACES)

    def seen_pixels(self, settings: Mapping[str, Any], prompt: str = "") -> int:
        """Pixels of the resized image."""
        return min(self.rules.longest_edge**2, Settings.of(settings).max_pixels or self.rules.longest_edge**2)

    @staticmethod
    def output(
        prompt: str, settings: Mapping[str, Any] = MappingProxyType({}), scale: tuple[float, float] = (1.0, 1.0)
    ) -> OutputFilter:
        """Markdown with plain dollars, and the places of pictures; see ``output``."""
        return output_filter(prompt, settings, scale)

    @classmethod
    def blocks(cls, text: str, width: int, height: int) -> tuple[Block, ...]:
        """Blocks that an answer marks."""
        return marked_blocks(text, width, height)
