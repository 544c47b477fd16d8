"""The independent reference for PaddleOCR-VL: transformers' ``paddleocr_vl``, loaded from the published layout.

The library maps the published tensor names onto its modules, computes positions and prompts, and cuts images with its
own processor, so nothing of ours stands between.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil

from .reference import filled, processor_settings


def load_paddle(
    folder: Path, attention: str = "eager", dtype: torch.dtype = torch.float32
) -> PaddleOCRVLForConditionalGeneration:
    """transformers' model with the checkpoint's weights, in evaluation mode."""
    config = PaddleOCRVLConfig.from_pretrained(folder)
    model: PaddleOCRVLForConditionalGeneration = filled(
        PaddleOCRVLForConditionalGeneration, folder, config, dtype, attention
    )
    return model


def image_processor(folder: Path) -> PaddleOCRVLImageProcessorPil:
    """transformers' processor on Pillow, with the checkpoint's settings."""
    return PaddleOCRVLImageProcessorPil(**processor_settings(folder))


@torch.no_grad()
def page_features(model: Any, processor: Any, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Features of one image [tokens, hidden], and its patches (time, rows, columns)."""
    prepared = processor(image, return_tensors="pt")
    grid = prepared["image_grid_thw"]
    output = model.get_image_features(prepared["pixel_values"], grid, return_dict=True)
    return output.pooler_output[0].numpy(), grid[0].numpy()


@torch.no_grad()
def greedy(
    model: Any, prompt_ids: Sequence[int], features: Sequence[np.ndarray], grids: Sequence[np.ndarray], steps: int,
    allowed: np.ndarray,
) -> tuple[np.ndarray, list[int]]:  # fmt: skip
    """Prefill, then decode greedily with transformers' cache and positions, among the ``allowed`` token ids.

    features, grids : of each image, see ``page_features``. Returns logits [steps + 1, vocabulary] and the chosen tokens
    [steps + 1].
    """
    ids = torch.tensor([list(prompt_ids)])
    is_image = ids == model.config.image_token_id
    embeddings = model.get_input_embeddings()(ids).clone()
    if features:
        embeddings[is_image] = torch.from_numpy(np.concatenate(features))
        grid = torch.from_numpy(np.stack(grids))
        positions, delta = model.model.get_rope_index(ids, is_image.int(), image_grid_thw=grid)
    else:
        positions, delta = torch.arange(ids.shape[1]).expand(3, 1, -1), torch.zeros(1, 1, dtype=torch.long)
    output = model(inputs_embeds=embeddings, position_ids=positions, use_cache=True)
    logits, tokens = [output.logits[0, -1]], []
    for step in range(steps + 1):
        tokens.append(int(allowed[int(logits[-1][torch.from_numpy(allowed)].argmax())]))
        if step == steps:
            break
        output = model(
            inputs_embeds=model.get_input_embeddings()(torch.tensor([[tokens[-1]]])),
            position_ids=(ids.shape[1] + step + delta).expand(3, 1, -1),
            past_key_values=output.past_key_values,
            use_cache=True,
        )
        logits.append(output.logits[0, -1])
    return torch.stack(logits).numpy(), tokens
