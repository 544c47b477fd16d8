"""The rules of GLM-OCR, bound to one exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from models.family import Encode, OutputFilter, Positions, PreparedImage
from models.family_settings import FamilySettings
from models.manifest import Manifest
from models.page_family import PageFamily
from models.patches import limited, resize, say_limit, token_positions

from .images import MAX_PIXELS, ImageRules, ImageSettings, resized_size
from .output import DEFAULT_TASK, DEFAULTS, TASKS, check_template, output_filter


class GlmOcr(PageFamily[ImageRules]):
    """See ``models.family.Family``."""

    tasks = TASKS
    default_task = DEFAULT_TASK
    defaults = DEFAULTS
    settings: ClassVar[type[FamilySettings]] = ImageSettings
    rules_class = ImageRules

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        say_limit(manifest.id, MAX_PIXELS, self.rules)

    def resized(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        return resize(image, limited(self.rules, ImageSettings.of(settings), MAX_PIXELS), resized_size)

    def seen_pixels(self, settings: Mapping[str, Any], prompt: str = "") -> int:
        """Pixels of the resized image."""
        return limited(self.rules, ImageSettings.of(settings), MAX_PIXELS).max_pixels

    def prompt_ids(self, prompt: str, image_tokens: Sequence[int], encode: Encode) -> list[int]:
        """See ``PageFamily``; checks that a prompt for fields has a JSON template."""
        check_template(prompt)
        return super().prompt_ids(prompt, image_tokens, encode)

    def positions(self, prompt_ids: Sequence[int], images: Sequence[PreparedImage]) -> Positions:
        """Time, row and column of each token."""
        return token_positions(prompt_ids, self.tokens.image, images)

    @staticmethod
    def output(
        prompt: str, settings: Mapping[str, Any] = MappingProxyType({}), scale: tuple[float, float] = (1.0, 1.0)
    ) -> OutputFilter:
        """See ``output``."""
        return output_filter(prompt)
