"""The independent reference for dots.ocr, of transformers' modules alone: the library has no module of that name.

Its tower is that of dots3-note without the norms of queries and keys, its decoder Qwen2. Nothing of the repository's
remote code runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.initialization import no_init_weights
from transformers.models.dots3_note.configuration_dots3_note import Dots3NoteVisionConfig
from transformers.models.dots3_note.modeling_dots3_note import Dots3NoteVisionModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from .reference import processor_settings

_TOWER = "vision_tower."
# Published part of a name -> the library's.
_RENAMED = {
    "patch_embed.patchifier.": "patch_embed.", "mlp.fc1.": "mlp.gate_proj.", "mlp.fc3.": "mlp.up_proj.",
    "mlp.fc2.": "mlp.down_proj.", "post_trunk_norm.": "norm.",
}  # fmt: skip


def load_dots(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Qwen2 with the tower as ``model.model.vision_tower``, all weights from the checkpoint, in evaluation mode."""
    model = load_decoder(folder, dtype)
    model.model.vision_tower = load_tower(folder, dtype)
    return model


def load_decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Qwen2 alone: at full size 7 of the 12 GB that both parts have in float32."""
    config = json.loads((folder / "config.json").read_text())
    text = {key: value for key, value in config.items() if key not in ("auto_map", "architectures", "vision_config")}
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    decoder = Qwen2Config(**{**text, "model_type": "qwen2", "rope_parameters": rope})
    with no_init_weights():
        library: Any = Qwen2ForCausalLM  # whose method has no types
        model = library._from_config(decoder, dtype=dtype, attn_implementation="eager")
    return _filled(model, folder, lambda name: None if name.startswith(_TOWER) else name)


def load_tower(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The tower alone."""
    config = json.loads((folder / "config.json").read_text())
    with no_init_weights():
        tower = tower_of(config["vision_config"]).to(dtype)
    return _filled(
        tower, folder,
        lambda name: published_to_library(name.removeprefix(_TOWER)) if name.startswith(_TOWER) else None,
    )  # fmt: skip


@torch.no_grad()
def _filled(model: Any, folder: Path, name_of: Callable[[str], str | None]) -> Any:
    """The model with every weight from the folder, tensor by tensor, so that there is one copy in memory.

    name_of : the model's name of a published tensor; None: the tensor is of another part.
    """
    missing = dict(model.state_dict())
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for published in tensors.keys():  # noqa: SIM118
                name = name_of(published)
                if name is not None:
                    own = missing.pop(name)
                    own.copy_(tensors.get_tensor(published).reshape(own.shape))
    if missing:
        raise ValueError(f"{folder} has nothing for {sorted(missing)}")
    return model.eval()


def published_to_library(name: str) -> str:
    """The name of one of the tower's tensors, without ``vision_tower.``, in the library."""
    for published, ours in _RENAMED.items():
        name = name.replace(published, ours)
    return name


def tower_of(vision: Any) -> Any:
    """The library's tower for a published ``vision_config``, without weights."""
    layers, width = vision["num_hidden_layers"], vision["embed_dim"]
    config = Dots3NoteVisionConfig(
        hidden_size=width, intermediate_size=vision["intermediate_size"], num_hidden_layers=layers,
        num_attention_heads=vision["num_attention_heads"], patch_size=vision["patch_size"],
        mlp_layer_types=["dense"] * layers, adapter_in_dim=width, adapter_out_dim=vision["hidden_size"],
        attention_bias=False, mlp_bias=False, rms_norm_eps=vision["rms_norm_eps"],
    )  # fmt: skip
    tower: Any = Dots3NoteVisionModel(config)
    for block in tower.blocks:
        block.attn.q_norm = block.attn.k_norm = torch.nn.Identity()
    return tower.eval()


def image_processor(folder: Path, max_pixels: int) -> Qwen2VLImageProcessorPil:
    """transformers' processor on Pillow, with the checkpoint's settings but for the limit."""
    settings = processor_settings(folder)
    return Qwen2VLImageProcessorPil(**{**settings, "max_pixels": min(max_pixels, settings["max_pixels"])})
