"""The rules of Unlimited-OCR, bound to one exported model.

Image preparation and tokens are DeepSeek-OCR's, with more tiles. Several images of one request are pages of a document:
each is one global view, and all share one slot of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from PIL import Image
from pydantic import Field

from models.deepseek_ocr.family import DeepseekOcr
from models.deepseek_ocr.images import ImageSettings, global_view
from models.family import IMAGE_SLOT, Encode, PreparedImage
from models.family_settings import FamilySettings
from models.manifest import Manifest

# The prompts that the authors publish stand right behind the image; those of DeepSeek-OCR work too.
TASKS: Mapping[str, str] = MappingProxyType(
    {"markdown": f"{IMAGE_SLOT}document parsing.", "pages": f"{IMAGE_SLOT}Multi page parsing."}
)
DEFAULT_TASK = "markdown"
PAGES = "pages"
# The authors' settings: n-grams of the last 128 tokens for one image, of the last 1,024 for several.
DEFAULTS: Mapping[str, Any] = MappingProxyType({"no_repeat_ngram_size": 35, "no_repeat_ngram_window": 128})
DEFAULTS_FOR_SEVERAL: Mapping[str, Any] = MappingProxyType({"no_repeat_ngram_window": 1024})

_SLOTS_IN_FRONT = re.compile(rf"(?:{IMAGE_SLOT}\s*)+")
_OWN_PROMPTS = tuple(prompt.removeprefix(IMAGE_SLOT) for prompt in TASKS.values())


class Settings(ImageSettings):
    """DeepSeek-OCR's settings, and the answer's window."""

    max_tiles: int | None = Field(None, ge=1, le=64, description="most tiles of one image", examples=[32])
    full_attention: bool = Field(
        False, description="an answer sees all of itself instead of its last tokens: more memory, and drift beyond 128"
    )


class UnlimitedOcr(DeepseekOcr):
    """See ``models.family.Family``."""

    tasks = TASKS
    default_task = DEFAULT_TASK
    defaults = DEFAULTS
    defaults_for_several = DEFAULTS_FOR_SEVERAL
    joint_tasks = frozenset({PAGES})
    settings: ClassVar[type[FamilySettings]] = Settings

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._window = manifest.sizes.window

    def prepare_image(
        self, image: Image.Image, settings: Mapping[str, Any], prompt: str = "", images: int = 1
    ) -> PreparedImage:
        """See DeepSeek-OCR; one of several pages, or a page with a joint prompt, is a global view alone."""
        if images > 1 or _words(prompt) == _words(TASKS[PAGES]):
            return self.prepared(global_view(image, ImageSettings.of(settings), self.rules))
        return super().prepare_image(image, settings)

    def prompt_ids(self, prompt: str, image_tokens: Sequence[int], encode: Encode) -> list[int]:
        """Token ids; several pages in front of the text share one slot."""
        prompt = prompt.strip()
        front = _SLOTS_IN_FRONT.match(prompt)
        together = front is not None and front[0].count(IMAGE_SLOT) in (1, len(image_tokens))
        if front is not None and together and len(image_tokens) > 1 and IMAGE_SLOT not in prompt[front.end() :]:
            gap = front[0][len(front[0].rstrip()) :]
            prompt, image_tokens = f"{IMAGE_SLOT}{gap}{prompt[front.end() :]}", [sum(image_tokens)]
        return super().prompt_ids(_without_break(prompt), image_tokens, encode)

    def window(self, settings: Mapping[str, Any]) -> int | None:
        """The checkpoint's window, unless full attention is asked for."""
        return None if Settings.of(settings).full_attention else self._window


def _words(prompt: str) -> str:
    return prompt.replace(IMAGE_SLOT, "").strip()


def _without_break(prompt: str) -> str:
    """The prompt without a client's line break between image and text, if it is one of the family's own."""
    return IMAGE_SLOT + _words(prompt) if prompt.startswith(IMAGE_SLOT) and _words(prompt) in _OWN_PROMPTS else prompt
