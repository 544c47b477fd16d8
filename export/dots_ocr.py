"""dots.ocr checkpoints as graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config_values import check_values, required, size
from .errors import ExportError
from .layers import Precision
from .mergers import MergerSpec, MlpMerger
from .rms_vision import Tower, TowerNames, TowerSpec

VISION = "vision_tower"
NAMES = TowerNames(
    patches=f"{VISION}.patch_embed.patchifier.proj", entry_norm=f"{VISION}.patch_embed.patchifier.norm",
    layers=f"{VISION}.blocks", exit_norm=f"{VISION}.post_trunk_norm", norm1="norm1", qkv=("attn.qkv",),
    proj="attn.proj", norm2="norm2", gate="mlp.fc1", up="mlp.fc3", down="mlp.fc2",
)  # fmt: skip

_REQUIRED_OF_VISION: Mapping[str, tuple[Any, ...]] = {
    "num_channels": (3,),
    "temporal_patch_size": (1,),
    "post_norm": (True,),
    "use_bias": (False,),
    "is_causal": (False,),
}
_MERGER_EPSILON = 1e-6  # published code


def tower_spec(config: Mapping[str, Any]) -> TowerSpec:
    """The tower's sizes.

    Raises
    ------
    ExportError
        when a key is missing or has a value that the graph does not implement.
    """
    vision = required(config, "vision_config")
    check_values(vision, _REQUIRED_OF_VISION, "config.json: vision_config")
    return TowerSpec(
        width=size(vision, "embed_dim"),
        layers=size(vision, "num_hidden_layers"),
        heads=size(vision, "num_attention_heads"),
        mlp_width=size(vision, "intermediate_size"),
        patch=size(vision, "patch_size"),
        epsilon=float(vision.get("rms_norm_eps", 1e-5)),
        patch_bias=True,
        entry_norm=True,
    )


def merger_spec(config: Mapping[str, Any], hidden: int) -> MergerSpec:
    """hidden : the decoder's width.

    Raises
    ------
    ExportError
        when the tower's features have another width.
    """
    vision = required(config, "vision_config")
    if (width := size(vision, "hidden_size")) != hidden:
        raise ExportError(f"config.json: vision_config: hidden_size is {width}, and the decoder is {hidden} wide")
    return MergerSpec(size(vision, "embed_dim"), size(vision, "spatial_merge_size"), hidden, _MERGER_EPSILON)


def tower(spec: TowerSpec, merger: MergerSpec, precision: Precision) -> Tower:
    """The whole of it."""
    return Tower(NAMES, spec, MlpMerger(f"{VISION}.merger", merger, precision), precision)
