"""The independent reference for DeepSeek-OCR-2: transformers' ``deepseek_ocr2``, loaded from the published layout.

The library maps the published tensor names onto its modules. Its own defaults for the encoder are not the checkpoint's,
so the config is made from config.json and tensor shapes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import DeepseekOcr2Config, DeepseekOcr2ForConditionalGeneration

from .reference import filled, sam_config, shapes_of, text_config

ENCODER = "model.qwen2_model.model.model"


def reference_config(folder: Path) -> DeepseekOcr2Config:
    """transformers' config for the checkpoint."""
    published = json.loads((folder / "config.json").read_text())
    decoder, shapes = published["language_config"], shapes_of(folder)
    layers = decoder["num_hidden_layers"]
    dense = decoder["first_k_dense_replace"]
    of_encoder = [name for name in shapes if name.startswith(f"{ENCODER}.layers.")]
    query, key = (shapes[f"{ENCODER}.layers.0.self_attn.{n}_proj.weight"][0] for n in "qk")
    return DeepseekOcr2Config(
        image_token_id=0,  # the reference is always fed embeddings
        text_config={**text_config(decoder), "mlp_layer_types": ["dense"] * dense + ["sparse"] * (layers - dense)},
        vision_config={
            "sam_config": sam_config(published["vision_config"], shapes),
            "encoder_config": {
                "hidden_size": query,
                "intermediate_size": shapes[f"{ENCODER}.layers.0.mlp.gate_proj.weight"][0],
                "num_hidden_layers": len({name.split(".layers.")[1].split(".")[0] for name in of_encoder}),
                "num_attention_heads": query // 64,
                "num_key_value_heads": key // 64,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            },
        },
    )


def load_deepseek2(folder: Path, dtype: torch.dtype = torch.float32) -> DeepseekOcr2ForConditionalGeneration:
    """transformers' model with the checkpoint's weights, in evaluation mode."""
    model: DeepseekOcr2ForConditionalGeneration = filled(
        DeepseekOcr2ForConditionalGeneration, folder, reference_config(folder), dtype
    )
    return model


@torch.no_grad()
def image_features(
    model: DeepseekOcr2ForConditionalGeneration, global_view: np.ndarray, tiles: np.ndarray | None
) -> np.ndarray:
    """Features of one image in the order that the decoder sees them, [image tokens, hidden].

    global_view : [1, 3, base, base]; tiles : [count, 3, size, size] or None.
    """
    output = model.get_image_features(
        torch.from_numpy(global_view), None if tiles is None else torch.from_numpy(tiles),
        None if tiles is None else [len(tiles)], return_dict=True,
    )  # fmt: skip
    features: torch.Tensor = output.pooler_output[0]
    return features.numpy()
