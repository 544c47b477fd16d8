"""The independent reference for GLM-OCR: transformers' ``glm_ocr``, loaded from the published layout.

The library maps the published tensor names onto its modules, computes positions, and cuts images with its own
processor, so nothing of ours stands between.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GlmOcrConfig, GlmOcrForConditionalGeneration
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil

from .reference import filled, processor_settings


def load_glm(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model with the checkpoint's weights, in evaluation mode."""
    return filled(GlmOcrForConditionalGeneration, folder, GlmOcrConfig.from_pretrained(folder), dtype)


def image_processor(folder: Path, **settings: Any) -> Any:
    """transformers' processor on Pillow, with the checkpoint's settings and others over them."""
    return Glm46VImageProcessorPil(**{**processor_settings(folder), **settings})
