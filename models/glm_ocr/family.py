"""The rules of GLM-OCR, bound to one exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from PIL import Image

from models.blocks import Block
from models.chat_template import PromptRules, chat_prompt
from models.family import Encode, OutputFilter, Positions, PreparedImage
from models.family_settings import FamilySettings
from models.grounding import Box
from models.manifest import Manifest
from models.patches import limited, one_page, resize, say_limit, token_positions
from models.pixels import noise

from .images import MAX_PIXELS, ImageRules, ImageSettings, resized_size
from .output import DEFAULT_TASK, DEFAULTS, TASKS, check_template, output_filter


class GlmOcr:
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
        say_limit(manifest.id, MAX_PIXELS, self.rules)

    def prepare_image(
        self, image: Image.Image, settings: Mapping[str, Any], prompt: str = "", images: int = 1
    ) -> PreparedImage:
        """One vision pass for the whole image."""
        rules = limited(self.rules, ImageSettings.of(settings), MAX_PIXELS)
        return one_page(resize(image, rules, resized_size), rules)

    def smallest_image(self, settings: Mapping[str, Any] | None = None) -> PreparedImage:
        """A single block of patches; every image is cut the same way, so settings need no larger one."""
        return self.prepare_image(noise(1), {"min_pixels": self.rules.factor**2} if settings is None else settings)

    def prompt_ids(self, prompt: str, image_tokens: Sequence[int], encode: Encode) -> list[int]:
        """The checkpoint's own chat template around one message: the images, then the text."""
        check_template(prompt)
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
        """See ``output``."""
        return output_filter(prompt)

    @staticmethod
    def boxes(text: str, width: int, height: int) -> list[Box]:
        """None: the model says nothing of places."""
        return []

    @staticmethod
    def blocks(text: str, width: int, height: int) -> tuple[Block, ...]:
        """None, as ``boxes``."""
        return ()
