"""The rules of PaddleOCR-VL, bound to one exported model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image

from models.family import Encode, Feeds, OutputFilter, Positions, PreparedImage
from models.grounding import Box
from models.manifest import Manifest
from models.settings import InferenceSettings

from .images import ImageRules, normalise, resize
from .output import DEFAULT_TASK, DEFAULTS, IGNORED_SETTINGS, TASKS, output_filter
from .positions import page_inputs, token_positions
from .prompt import PromptRules, chat_prompt


class PaddleOcrVl:
    """See ``models.family.Family``."""

    tasks = TASKS
    default_task = DEFAULT_TASK
    defaults = DEFAULTS
    ignored_settings = IGNORED_SETTINGS

    def __init__(self, manifest: Manifest) -> None:
        self.tokens = manifest.tokens
        self.rules = ImageRules.model_validate(manifest.image)
        self.prompt_rules = PromptRules.model_validate(manifest.prompt)

    def prepare_image(self, image: Image.Image, settings: InferenceSettings) -> PreparedImage:
        """One vision pass for the whole image."""
        pixels = resize(image, self.rules)
        rows, columns = (side // self.rules.factor for side in pixels.shape[:2])
        return PreparedImage(
            [partial(self._feeds, pixels)], rows * columns, lambda outputs: outputs[0]["features"], (rows, columns)
        )

    def _feeds(self, pixels: np.ndarray) -> Feeds:
        rows, columns = (side // self.rules.patch_size for side in pixels.shape[:2])
        return {"pixel_values": normalise(pixels, self.rules), **page_inputs(rows, columns, self.rules)}

    def prompt_ids(self, prompt: str, image_tokens: Sequence[int], encode: Encode) -> list[int]:
        """The checkpoint's own chat template around one message: the images, then the text."""
        return chat_prompt(prompt, image_tokens, self.prompt_rules, self.tokens.image, encode)

    def positions(self, prompt_ids: Sequence[int], images: Sequence[PreparedImage]) -> Positions:
        """Time, row and column of each token."""
        return token_positions(prompt_ids, self.tokens.image, images)

    @staticmethod
    def output(prompt: str) -> OutputFilter:
        """Tables as HTML, formulas between dollars; see ``output``."""
        return output_filter()

    @staticmethod
    def boxes(text: str, width: int, height: int) -> list[Box]:
        """None: the model reads what it is shown, and says nothing of places."""
        return []
