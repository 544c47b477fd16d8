"""The independent reference: transformers' own modules, loaded from a checkpoint with the published names.

``unlimited_ocr`` in transformers has DeepSeek-OCR's vision tower and, with plain full attention, its decoder; the
library's own conversion table maps the published tensor names onto its modules, so nothing of ours stands between.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import UnlimitedOcrConfig, UnlimitedOcrForConditionalGeneration


def reference_config(folder: Path) -> UnlimitedOcrConfig:
    """transformers' config for the checkpoint; sizes that config.json does not name come from tensor shapes."""
    published = json.loads((folder / "config.json").read_text())
    decoder = published["language_config"]
    vision = published["vision_config"]
    clip = vision["width"]["clip-l-14-224"]
    shapes = shapes_of(folder)
    window = decoder.get("sliding_window_size")
    kind = "full_attention" if window is None else "reference_sliding_attention"
    attention = {"layer_types": [kind] * decoder["num_hidden_layers"]} | ({"sliding_window": window} if window else {})
    return UnlimitedOcrConfig(
        image_token_id=0,  # the reference is always fed embeddings
        text_config={**text_config(decoder), **attention},
        vision_config={
            "sam_config": sam_config(vision, shapes),
            "encoder_config": {
                "hidden_size": clip["width"],
                "intermediate_size": shapes["model.vision_model.transformer.layers.0.mlp.fc1.weight"][0],
                "num_hidden_layers": clip["layers"],
                "num_attention_heads": clip["heads"],
                "image_size": clip["image_size"],
                "patch_size": clip["patch_size"],
            },
        },
    )


def text_config(decoder: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's part of transformers' config, from the published one."""
    left_out = ("architectures", "auto_map", "torch_dtype", "lm_head")
    rope = {"rope_type": "default", "rope_theta": decoder.get("rope_theta", 10000.0)}
    return {**{k: v for k, v in decoder.items() if k not in left_out}, "rope_parameters": rope}


def sam_config(vision: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """SAM's part, from the published ``vision_config`` and the tensors' shapes."""
    sam = vision["width"]["sam_vit_b"]
    windowed = next((i for i in range(sam["layers"]) if i not in sam["global_attn_indexes"]), None)
    window = 14 if windowed is None else (shapes[f"model.sam_model.blocks.{windowed}.attn.rel_pos_h"][0] + 1) // 2
    return {
        "hidden_size": sam["width"],
        "output_channels": shapes["model.sam_model.neck.0.weight"][0],
        "num_hidden_layers": sam["layers"],
        "num_attention_heads": sam["heads"],
        "image_size": vision["image_size"],
        "patch_size": shapes["model.sam_model.patch_embed.proj.weight"][-1],
        "window_size": window,
        "global_attn_indexes": sam["global_attn_indexes"],
        "mlp_dim": shapes["model.sam_model.blocks.0.mlp.lin1.weight"][0],
        "downsample_channels": [sam["downsample_channels"][0], shapes["model.sam_model.net_3.weight"][0]],
    }


def load_reference(folder: Path, dtype: torch.dtype = torch.float32) -> UnlimitedOcrForConditionalGeneration:
    """transformers' model with the checkpoint's weights, in evaluation mode."""
    model: UnlimitedOcrForConditionalGeneration = filled(
        UnlimitedOcrForConditionalGeneration, folder, reference_config(folder), dtype
    )
    return model


def filled(kind: Any, folder: Path, config: Any, dtype: torch.dtype, attention: str = "eager") -> Any:
    """A model of transformers' with all of its weights from the folder, in evaluation mode.

    Raises
    ------
    ValueError
        when the folder lacks a weight, or has one of another shape.
    """
    model, loading = kind.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    if loading["missing_keys"] or loading["mismatched_keys"]:
        raise ValueError(f"transformers could not fill {loading['missing_keys']} {loading['mismatched_keys']}")
    return model.eval()


def processor_settings(folder: Path) -> dict[str, Any]:
    """preprocessor_config.json, without the keys that say which class reads it."""
    settings: dict[str, Any] = json.loads((folder / "preprocessor_config.json").read_text())
    left_out = ("image_processor_type", "processor_class", "auto_map")
    return {key: value for key, value in settings.items() if key not in left_out}


@torch.no_grad()
def image_features(
    model: UnlimitedOcrForConditionalGeneration,
    global_view: np.ndarray,
    tiles: np.ndarray | None,
    grid: tuple[int, int],
) -> np.ndarray:
    """Features of one image in the order that the decoder sees them.

    global_view : [1, 3, base, base]; tiles : [columns * rows, 3, size, size] or None; grid : (columns, rows).
    Returns [image tokens, hidden].
    """
    output = model.get_image_features(
        torch.from_numpy(global_view),
        None if tiles is None else torch.from_numpy(tiles),
        [0 if tiles is None else len(tiles)],
        [list(grid)],
        return_dict=True,
    )
    features: torch.Tensor = output.pooler_output[0]
    return features.numpy()


@torch.no_grad()
def embed(model: UnlimitedOcrForConditionalGeneration, token_ids: Sequence[int]) -> np.ndarray:
    """Token embeddings, shape [len(token_ids), hidden]."""
    embeddings: torch.Tensor = model.get_input_embeddings()(torch.tensor(token_ids))
    return embeddings.numpy()


@torch.no_grad()
def greedy_logits(
    model: Any, embeddings: np.ndarray, steps: int, allowed: int | np.ndarray
) -> tuple[np.ndarray, list[int]]:
    """Prefill, then decode greedily with transformers' cache.

    embeddings : [prompt tokens, hidden]. allowed : the first so many tokens, or ids of those. Returns logits
    [steps + 1, all rows] and the chosen tokens [steps + 1].
    """
    ids = np.arange(allowed) if isinstance(allowed, int) else allowed
    output = model(inputs_embeds=torch.from_numpy(embeddings)[None], use_cache=True)
    logits = [output.logits[0, -1]]
    tokens = [int(ids[int(logits[-1][ids].argmax())])]
    for step in range(steps):
        output = model(
            inputs_embeds=model.get_input_embeddings()(torch.tensor([[tokens[-1]]])),
            position_ids=torch.tensor([[len(embeddings) + step]]),
            past_key_values=output.past_key_values,
            use_cache=True,
        )
        logits.append(output.logits[0, -1])
        tokens.append(int(ids[int(logits[-1][ids].argmax())]))
    return torch.stack(logits).numpy(), tokens


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            shapes.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
    return shapes
