"""The rules of dots.ocr and dots.mocr, bound to one exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

from PIL import Image

from models.blocks import Block
from models.chat_template import PromptRules
from models.family import Encode, OutputFilter, Positions, PreparedImage, counted
from models.family_settings import FamilySettings
from models.grounding import Box
from models.manifest import Manifest
from models.patches import limited, one_page, resize, say_limit
from models.pixels import noise, upright_size

from .images import MAX_PIXELS, ImageRules, ImageSettings, resized_size
from .output import DEFAULTS, OutputSettings, layout_blocks, output_filter
from .prompts import DEFAULT_TASK, TASKS, prompt_ids, sized_prompt


class Settings(ImageSettings, OutputSettings):
    """What can be set of it."""


class DotsOcr:
    """See ``models.family.Family``."""

    tasks = TASKS
    default_task = DEFAULT_TASK
    defaults = DEFAULTS
    defaults_for_several: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    joint_tasks: ClassVar[frozenset[str]] = frozenset()
    settings: ClassVar[type[FamilySettings]] = Settings

    def __init__(self, manifest: Manifest) -> None:
        self.tokens = manifest.tokens
        self.rules = ImageRules.model_validate(manifest.image)
        self.prompt_rules = PromptRules.model_validate(manifest.prompt)
        say_limit(manifest.id, MAX_PIXELS, self.rules)

    def prepare_image(
        self, image: Image.Image, settings: Mapping[str, Any], prompt: str = "", images: int = 1
    ) -> PreparedImage:
        """One vision pass for the whole image; the answer's places are pixels of what that sees."""
        rules = limited(self.rules, Settings.of(settings), MAX_PIXELS)
        pixels = resize(image, rules, resized_size)
        seen = (pixels.shape[1], pixels.shape[0])
        prompt_of_page = sized_prompt(prompt, upright_size(image), seen)
        return replace(one_page(pixels, self.rules), seen=seen, prompt=prompt_of_page)

    def smallest_image(self, settings: Mapping[str, Any] | None = None) -> PreparedImage:
        """A single block of patches; every image is cut the same way, so settings need no larger one."""
        return self.prepare_image(noise(1), {"min_pixels": self.rules.factor**2} if settings is None else settings)

    def prompt_ids(self, prompt: str, image_tokens: Sequence[int], encode: Encode) -> list[int]:
        """As the authors serve the model; their own prompts to the letter."""
        return prompt_ids(prompt, image_tokens, self.prompt_rules, self.tokens.image, encode)

    def positions(self, prompt_ids: Sequence[int], images: Sequence[PreparedImage]) -> Positions:
        """Counted, through an image too."""
        return counted(len(prompt_ids))

    def window(self, settings: Mapping[str, Any]) -> int | None:
        """None: attention is full."""
        return None

    @staticmethod
    def output(
        prompt: str, settings: Mapping[str, Any] = MappingProxyType({}), scale: tuple[float, float] = (1.0, 1.0)
    ) -> OutputFilter:
        """A layout as Markdown; see ``output``."""
        return output_filter(prompt, settings, scale)

    @staticmethod
    def boxes(text: str, width: int, height: int) -> list[Box]:
        """None: its places are its blocks'."""
        return []

    @staticmethod
    def blocks(text: str, width: int, height: int) -> tuple[Block, ...]:
        """The layout's cells."""
        return layout_blocks(text, width, height)
