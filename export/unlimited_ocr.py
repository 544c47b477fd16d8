"""Unlimited-OCR checkpoints as graphs: DeepSeek-OCR's, with positions from the host and a window over the answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from models.deepseek_ocr.images import ImageRules

from .checkpoint import Checkpoint
from .config_values import size
from .deepseek_ocr import DeepseekOcrExport, decoder_config

MAX_TILES = 32  # published code


class UnlimitedOcrExport(DeepseekOcrExport):
    """One checkpoint of the family, understood; see ``export.family.FamilyExport``.

    ``sliding_window_size`` is the window; libraries read ``sliding_window``, which would cut the prompt, too.
    """

    computed: ClassVar[Collection[str]] = ("sliding_window", "sliding_window_size")

    def __init__(self, checkpoint: Checkpoint, processor: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, processor)
        window = size(decoder_config(self._config), "sliding_window_size")
        sections = (self.decoder.head_dim // 2,)
        self.decoder = replace(self.decoder, rotary_sections=sections, window=window)

    @property
    def image_rules(self) -> ImageRules:
        """DeepSeek-OCR's, with more tiles."""
        rules = super().image_rules
        return rules.model_copy(update={"max_tiles": self._processor.get("max_tiles") or MAX_TILES})
