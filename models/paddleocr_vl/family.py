"""The rules of PaddleOCR-VL, bound to one exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from models.family import IMAGE_SLOT, OutputFilter, Positions, PreparedImage
from models.family_settings import FamilySettings
from models.grounding import Box
from models.locations import parse_locations
from models.page_family import PageFamily
from models.patches import limited, one_page, resize, token_positions

from .images import PIXELS_TO_SPOT, ImageRules, ImageSettings, for_spotting, resized_size
from .output import DEFAULT_TASK, DEFAULTS, SPOTTING, TASKS, output_filter
from .positions import page_inputs


class PaddleOcrVl(PageFamily[ImageRules]):
    """See ``models.family.Family``."""

    tasks = TASKS
    default_task = DEFAULT_TASK
    defaults = DEFAULTS
    settings: ClassVar[type[FamilySettings]] = ImageSettings
    rules_class = ImageRules

    def resized(self, image: Image.Image, settings: Mapping[str, Any], *, spotting: bool = False) -> np.ndarray:
        """spotting : enlarge the image, see ``for_spotting``."""
        own = ImageSettings.of(settings)
        rules = limited(self.rules, own)
        if spotting:
            image, rules = for_spotting(image, rules, own)
        return resize(image, rules, resized_size)

    def prepare_image(
        self, image: Image.Image, settings: Mapping[str, Any], prompt: str = "", images: int = 1
    ) -> PreparedImage:
        """One vision pass for the whole image, with rows of a position table."""
        return one_page(self.resized(image, settings, spotting=_is_spotting(prompt)), self.rules, page_inputs)

    def seen_pixels(self, settings: Mapping[str, Any], prompt: str = "") -> int:
        """Pixels of the resized image; images for spotting are enlarged."""
        most = limited(self.rules, ImageSettings.of(settings)).max_pixels
        return max(most, PIXELS_TO_SPOT) if _is_spotting(prompt) else most

    def positions(self, prompt_ids: Sequence[int], images: Sequence[PreparedImage]) -> Positions:
        """Time, row and column of each token."""
        return token_positions(prompt_ids, self.tokens.image, images)

    @staticmethod
    def output(
        prompt: str, settings: Mapping[str, Any] = MappingProxyType({}), scale: tuple[float, float] = (1.0, 1.0)
    ) -> OutputFilter:
        """Tables as HTML, formulas between dollars; see ``output``."""
        return output_filter()

    @staticmethod
    def boxes(text: str, width: int, height: int) -> list[Box]:
        """Boxes of the lines that the model spots; its other answers have no boxes."""
        return parse_locations(text, width, height)


def _is_spotting(prompt: str) -> bool:
    return prompt.replace(IMAGE_SLOT, "").strip() == SPOTTING.replace(IMAGE_SLOT, "")
