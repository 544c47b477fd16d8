"""The rules of families whose tower takes a page of any proportions in one pass: see ``models.patches``.

A family must define ``tasks``, ``default_task``, ``settings``, ``rules_class``, ``resized`` and ``seen_pixels``; it
overrides prompts, positions and answers where they differ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic

import numpy as np
from PIL import Image

from .chat_template import PromptRules, chat_prompt
from .family import Encode, PreparedImage
from .family_base import FamilyBase
from .manifest import Manifest
from .patches import Rules, one_page
from .pixels import noise


class PageFamily(FamilyBase, ABC, Generic[Rules]):
    """Base of such families, see ``models.family.Family``. ``rules_class`` parses the manifest's image settings."""

    rules_class: ClassVar[type[Any]]

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.rules: Rules = self.rules_class.model_validate(manifest.image)
        self.prompt_rules = PromptRules.model_validate(manifest.prompt)

    @abstractmethod
    def resized(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        """The upright image, resized for the tower, [height, width, 3] uint8.

        Raises
        ------
        InvalidInput
            when the image or a setting cannot be taken.
        """

    @abstractmethod
    def seen_pixels(self, settings: Mapping[str, Any], prompt: str = "") -> int:
        """Most pixels of a resized image, see ``models.family.Family``."""

    def prepare_image(
        self, image: Image.Image, settings: Mapping[str, Any], prompt: str = "", images: int = 1
    ) -> PreparedImage:
        """One vision pass for the whole image."""
        return one_page(self.resized(image, settings), self.rules)

    def smallest_image(self, settings: Mapping[str, Any] | None = None) -> PreparedImage:
        """A single block of patches, whatever the settings: every image is cut the same way."""
        smallest = {"min_pixels": self.rules.factor**2}
        return self.prepare_image(noise(self.rules.factor), smallest if settings is None else settings)

    def prompt_ids(self, prompt: str, image_tokens: Sequence[int], encode: Encode) -> list[int]:
        """The checkpoint's own chat template around one message: the images, then the text, if there is any."""
        return chat_prompt(prompt, image_tokens, self.prompt_rules, self.tokens.image, encode)
