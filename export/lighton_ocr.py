"""LightOnOCR checkpoints as graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config_values import required, size
from .layers import Precision
from .mergers import LinearMerger, MergerSpec
from .rms_vision import Tower, TowerNames, TowerSpec

VISION, PROJECTION = "model.vision_encoder", "model.vision_projection"
NAMES = TowerNames(
    patches=f"{VISION}.patch_conv", entry_norm=f"{VISION}.ln_pre", layers=f"{VISION}.transformer.layers",
    exit_norm=f"{PROJECTION}.norm", norm1="attention_norm",
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"), proj="attention.o_proj", norm2="ffn_norm",
    gate="feed_forward.gate_proj", up="feed_forward.up_proj", down="feed_forward.down_proj",
)  # fmt: skip

_EPSILON = 1e-5  # of the tower, by Pixtral's published code


def tower_spec(config: Mapping[str, Any], decoder_epsilon: float) -> TowerSpec:
    """The tower's sizes. Its last norm is the projection's first, whose epsilon is the decoder's.

    Raises
    ------
    ExportError
        when a key is missing or has a value that the graph does not implement.
    """
    vision = required(config, "vision_config")
    return TowerSpec(
        width=size(vision, "hidden_size"),
        layers=size(vision, "num_hidden_layers"),
        heads=size(vision, "num_attention_heads"),
        mlp_width=size(vision, "intermediate_size"),
        patch=size(vision, "patch_size"),
        epsilon=_EPSILON,
        patch_bias=False,
        entry_norm=True,
        exit_epsilon=decoder_epsilon,
    )


def tower(spec: TowerSpec, merger: MergerSpec, precision: Precision) -> Tower:
    """The whole of it."""
    return Tower(NAMES, spec, LinearMerger(PROJECTION, merger, precision), precision)
