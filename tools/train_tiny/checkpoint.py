"""The shipped folder: DeepSeek-OCR's published layout and tensor names, written from a model and read back into one."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import UnlimitedOcrForConditionalGeneration

from . import tokens
from .model import TinySpec, build_config

CLIP_PATCH = "model.vision_model.embeddings.patch_embedding.weight"
"""Published, but used by nothing: CLIP reads the SAM map. Kept as a tiny tensor so that readers meet every name."""


def language_config(spec: TinySpec) -> dict[str, object]:
    """Return the decoder's values, which the published config.json has in `language_config` and at its top level."""
    return {
        "bos_token_id": tokens.BOS_ID,
        "eos_token_id": tokens.EOS_ID,
        "first_k_dense_replace": 1,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.dense_mlp,
        "kv_lora_rank": None,
        "lm_head": True,
        "max_position_embeddings": spec.max_positions,
        "moe_intermediate_size": spec.expert_mlp,
        "n_group": 1,
        "n_routed_experts": spec.experts,
        "n_shared_experts": spec.shared_experts,
        "num_attention_heads": spec.heads,
        "num_experts_per_tok": spec.experts_per_token,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.heads,
        "q_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "rm_head": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "use_mla": False,
        "v_head_dim": 0,
        "vocab_size": tokens.VOCAB_SIZE,
    }


def published_config(spec: TinySpec) -> dict[str, object]:
    """Return config.json: the published keys, less `auto_map`, which names code files that are not shipped here."""
    decoder = language_config(spec)
    return {
        "_name_or_path": "tiny-ocr",
        "candidate_resolutions": [[spec.base_size, spec.base_size]],
        "global_view_pos": "head",
        "architectures": ["DeepseekOCRForCausalLM"],
        "language_config": {"architectures": ["DeepseekV2ForCausalLM"], "torch_dtype": "float16", **decoder},
        "model_type": "deepseek_vl_v2",
        "projector_config": {
            "input_dim": 2 * spec.downsample[-1],
            "model_type": "mlp_projector",
            "n_embed": spec.hidden,
            "projector_type": "linear",
        },
        "tile_tag": "2D",
        "torch_dtype": "float16",
        "transformers_version": "4.46.3",
        "vision_config": {
            "image_size": spec.base_size,
            "mlp_ratio": spec.sam_mlp / spec.sam_width,
            "model_name": "deeplip_b_l",
            "model_type": "vision",
            "width": {
                "clip-l-14-224": {
                    "heads": spec.clip_heads,
                    "image_size": spec.base_size,
                    "layers": spec.clip_layers,
                    "patch_size": spec.token_pixels,
                    "width": spec.downsample[-1],
                },
                "sam_vit_b": {
                    "downsample_channels": list(spec.downsample),
                    "global_attn_indexes": list(spec.sam_global),
                    "heads": spec.sam_heads,
                    "layers": spec.sam_layers,
                    "width": spec.sam_width,
                },
            },
        },
        **decoder,
    }


def processor_config(spec: TinySpec) -> dict[str, object]:
    """Return processor_config.json: the published keys plus `base_size` and `image_size`, there built into the code."""
    return {
        "add_special_token": False,
        "base_size": spec.base_size,
        "candidate_resolutions": [[spec.base_size, spec.base_size]],
        "downsample_ratio": 4,
        "ignore_id": -100,
        "image_mean": [0.5, 0.5, 0.5],
        "image_size": spec.image_size,
        "image_std": [0.5, 0.5, 0.5],
        "image_token": "<image>",
        "mask_prompt": False,
        "normalize": True,
        "pad_token": tokens.PAD,
        "patch_size": spec.patch_size,
        "processor_class": "DeepseekVLV2Processor",
        "sft_format": "deepseek",
    }


def save_checkpoint(model: UnlimitedOcrForConditionalGeneration, spec: TinySpec, folder: Path) -> None:
    """Write the folder with float16 weights; each file appears complete, by rename. `model` is left in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        work = Path(name)
        model.half().save_pretrained(work)  # applies the reverse of the library's published-name mapping
        tensors = load_file(work / "model.safetensors")
        for leftover in work.iterdir():
            leftover.unlink()
        tensors[CLIP_PATCH] = torch.zeros(spec.downsample[-1], 3, 1, 1, dtype=torch.float16)
        save_file(dict(sorted(tensors.items())), work / "model.safetensors", metadata={"format": "pt"})
        (work / "model.safetensors").chmod(0o644)
        tokens.save_tokenizer(tokens.build_tokenizer(), work)
        for file, value in (("config.json", published_config(spec)), ("processor_config.json", processor_config(spec))):
            (work / file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        for path in sorted(work.iterdir()):
            path.replace(folder / path.name)


def read_spec(folder: Path) -> TinySpec:
    """Return the sizes of a folder: from its config files and, where those do not name them, from tensor shapes."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    clip, sam = config["vision_config"]["width"]["clip-l-14-224"], config["vision_config"]["width"]["sam_vit_b"]
    with safe_open(folder / "model.safetensors", "pt") as tensors:

        def shape(name: str) -> list[int]:
            return list(tensors.get_slice(f"model.{name}").get_shape())

        windowed = next(layer for layer in range(sam["layers"]) if layer not in sam["global_attn_indexes"])
        return TinySpec(
            base_size=processor["base_size"],
            image_size=processor["image_size"],
            patch_size=processor["patch_size"],
            sam_width=sam["width"],
            sam_layers=sam["layers"],
            sam_heads=sam["heads"],
            sam_mlp=shape("sam_model.blocks.0.mlp.lin1.weight")[0],
            sam_window=(shape(f"sam_model.blocks.{windowed}.attn.rel_pos_h")[0] + 1) // 2,
            sam_global=tuple(sam["global_attn_indexes"]),
            neck=shape("sam_model.neck.0.weight")[0],
            downsample=tuple(sam["downsample_channels"]),
            clip_layers=clip["layers"],
            clip_heads=clip["heads"],
            clip_mlp=shape("vision_model.transformer.layers.0.mlp.fc1.weight")[0],
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            dense_mlp=config["intermediate_size"],
            expert_mlp=config["moe_intermediate_size"],
            experts=config["n_routed_experts"],
            experts_per_token=config["num_experts_per_tok"],
            shared_experts=config["n_shared_experts"],
            max_positions=config["max_position_embeddings"],
        )


def load_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> UnlimitedOcrForConditionalGeneration:
    """Read a folder back through transformers, with the library's own attention and experts."""
    model: UnlimitedOcrForConditionalGeneration = UnlimitedOcrForConditionalGeneration.from_pretrained(
        folder, config=build_config(read_spec(folder)), dtype=dtype, attn_implementation="eager"
    )
    model.eval()
    return model


def mean_checkpoint(folders: Sequence[Path], out: Path) -> None:
    """Write the mean of the weights of checkpoint folders, stored in float16, with the first one's size of tiles; one
    named twice counts twice.

    Weights of one run, before and after further training, often read better as a mean than either does ("model soups",
    arXiv 2203.05482). Raises ValueError where the folders are not of one size.
    """
    specs = [read_spec(folder) for folder in folders]
    for folder, spec in zip(folders, specs, strict=True):
        if replace(spec, image_size=specs[0].image_size) != specs[0]:
            raise ValueError(f"{folder} and {folders[0]} hold models of different sizes; give folders of one model")
    mean = load_checkpoint(folders[0])
    total = dict(mean.named_parameters())
    with torch.no_grad():
        for folder in folders[1:]:
            for name, value in load_checkpoint(folder).named_parameters():
                total[name].add_(value)
        for value in total.values():
            value.div_(len(folders))
    save_checkpoint(mean, specs[0], out)
