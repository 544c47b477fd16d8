"""The rules of LightOnOCR, bound to one exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

from PIL import Image

from models.blocks import Block
from models.chat_template import PromptRules, chat_prompt
from models.family import Encode, OutputFilter, Positions, PreparedImage, counted
from models.family_settings import FamilySettings
from models.grounding import Box
from models.manifest import Manifest
from models.patches import one_page, resize
from models.pixels import noise

from .images import ImageRules, ImageSettings, resized_size
from .output import DEFAULT_TASK, DEFAULTS, PLACES, TASKS, OutputSettings, marked_blocks, output_filter


class Settings(ImageSettings, OutputSettings):
    """What can be set of it."""


class LightOnOcr:
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

    def prepare_image(
        self, image: Image.Image, settings: Mapping[str, Any], prompt: str = "", images: int = 1
    ) -> PreparedImage:
        """One vision pass for the whole image; the answer's places are thousandths of that."""
        rules = self.rules.model_copy(update={"max_pixels": Settings.of(settings).max_pixels})
        return replace(one_page(resize(image, rules, resized_size), self.rules), seen=PLACES)

    def smallest_image(self, settings: Mapping[str, Any] | None = None) -> PreparedImage:
        """A single block of patches; every image is cut the same way, so settings need no larger one."""
        return self.prepare_image(noise(self.rules.factor), settings or {})

    def prompt_ids(self, prompt: str, image_tokens: Sequence[int], encode: Encode) -> list[int]:
        """The checkpoint's own chat template around one message: the images, then the text, if there is any."""
        return chat_prompt(prompt, image_tokens, self.prompt_rules, self.tokens.image, encode)

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
        """Markdown with plain dollars, and the places of pictures; see ``output``."""
        return output_filter(prompt, settings, scale)

    @staticmethod
    def boxes(text: str, width: int, height: int) -> list[Box]:
        """None: its places are its blocks'."""
        return []

    @staticmethod
    def blocks(text: str, width: int, height: int) -> tuple[Block, ...]:
        """Those that an answer marks."""
        return marked_blocks(text, width, height)
