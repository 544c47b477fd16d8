"""GLM-OCR's vision tower: ``export.rms_vision`` with biases and norms of heads, merged by a convolution.

Its published name is CogViT. ``export.glm_ocr`` calls this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config_values import check_width, checked_part, required, size
from .layers import Precision
from .mergers import GatedMerger, MergerSpec
from .rms_vision import Tower, TowerNames, TowerSpec

VISION = "model.visual"
NAMES = TowerNames(
    patches=f"{VISION}.patch_embed.proj", entry_norm="", layers=f"{VISION}.blocks",
    exit_norm=f"{VISION}.post_layernorm", norm1="norm1", qkv=("attn.qkv",), proj="attn.proj", norm2="norm2",
    gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj",
)  # fmt: skip

_REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (True,),
    "in_channels": (3,),
}
_MLP_OF_MERGER = 3  # width of the merger's MLP by the decoder's, in the published code


def tower_spec(config: Mapping[str, Any]) -> TowerSpec:
    """The tower's sizes.

    Raises
    ------
    ExportError
        when a key is missing or has a value that the graph does not implement.
    """
    vision = checked_part(config, "vision_config", _REQUIRED)
    return TowerSpec(
        width=size(vision, "hidden_size"),
        layers=size(vision, "depth"),
        heads=size(vision, "num_heads"),
        mlp_width=size(vision, "intermediate_size"),
        patch=size(vision, "patch_size"),
        frames=size(vision, "temporal_patch_size"),
        epsilon=float(vision.get("rms_norm_eps", 1e-5)),
        patch_bias=True,
        bias=True,
        qk_norm=True,
    )


def merger_spec(config: Mapping[str, Any], hidden: int) -> MergerSpec:
    """The merger's sizes. hidden : the decoder's width; see ``check_width``."""
    vision = required(config, "vision_config")
    check_width(vision, "out_hidden_size", hidden)
    return MergerSpec(size(vision, "hidden_size"), size(vision, "spatial_merge_size"), hidden)


def tower(spec: TowerSpec, merger: MergerSpec, precision: Precision) -> Tower:
    """The whole tower."""
    merging = GatedMerger(f"{VISION}.downsample", f"{VISION}.merger", merger, _MLP_OF_MERGER * merger.hidden, precision)
    return Tower(NAMES, spec, merging, precision)
