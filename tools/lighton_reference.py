"""The independent reference for LightOnOCR: transformers' ``lighton_ocr``, loaded from the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers.models.lighton_ocr.configuration_lighton_ocr import LightOnOcrConfig
from transformers.models.lighton_ocr.modeling_lighton_ocr import LightOnOcrForConditionalGeneration
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from .reference import filled


def load_lighton(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model with the checkpoint's weights, in evaluation mode."""
    published = json.loads((folder / "config.json").read_text())
    # The published model_type is another model's, which has another projection.
    config = LightOnOcrConfig(**{key: value for key, value in published.items() if key != "model_type"})
    return filled(LightOnOcrForConditionalGeneration, folder, config, dtype)


def image_processor(folder: Path) -> PixtralImageProcessorPil:
    """transformers' processor on Pillow, with the checkpoint's settings."""
    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    kept = ("size", "patch_size", "image_mean", "image_std", "rescale_factor", "resample")
    return PixtralImageProcessorPil(**{key: settings[key] for key in kept})
