"""The independent reference for GLM-OCR: transformers' ``glm_ocr``, loaded from the published layout.

The library maps the published tensor names onto its modules, computes positions, and cuts images with its own
processor, so nothing of ours stands between.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GlmOcrConfig, GlmOcrForConditionalGeneration
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil


def load_glm(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model with the checkpoint's weights, in evaluation mode."""
    model, loading = GlmOcrForConditionalGeneration.from_pretrained(
        folder, config=GlmOcrConfig.from_pretrained(folder), dtype=dtype, attn_implementation="eager",
        output_loading_info=True,
    )  # fmt: skip
    if loading["missing_keys"] or loading["mismatched_keys"]:
        raise ValueError(f"transformers could not fill {loading['missing_keys']} {loading['mismatched_keys']}")
    return model.eval()


def image_processor(folder: Path, **settings: Any) -> Any:
    """transformers' processor on Pillow, with the checkpoint's settings and others over them."""
    published = json.loads((folder / "preprocessor_config.json").read_text())
    published = {
        key: value for key, value in published.items() if key not in ("image_processor_type", "processor_class")
    }
    return Glm46VImageProcessorPil(**{**published, **settings})
