"""Random checkpoints in the published DeepSeek-OCR layout: real file names, real tensor names, any sizes.

No weights can be fetched where this project is developed, so the tests use scaled-down checkpoints from here, and the
benchmark and the memory figures a full-size one::

    python -m tools.checkpoints FOLDER --full --tokenizer path/to/tokenizer.json

``tools.random_checkpoints`` says how the weights are drawn.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer
from tqdm import tqdm

from .random_checkpoints import byte_tokenizer, write_safetensors
from .tensor_shapes import Shapes, attention, gated_mlp, linear, norm, rms_norms

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
MARKERS = (
    "<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<td>", "</td>", "<tr>", "</tr>",
    "<|User|>", "<|Assistant|>",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Sizes of a DeepSeek-OCR checkpoint; the defaults make a small one that keeps every part of the architecture."""

    # decoder
    hidden: int = 64
    layers: int = 3
    heads: int = 2
    kv_heads: int = 2
    dense_mlp: int = 96
    dense_layers: int = 1
    experts: int = 8
    top_k: int = 3
    expert_mlp: int = 32
    shared_experts: int = 2
    vocabulary: int = 320
    max_positions: int = 2048
    # SAM
    sam_width: int = 48
    sam_layers: int = 3
    sam_heads: int = 3
    sam_global: tuple[int, ...] = (1,)
    sam_mlp: int = 96
    sam_window: int = 14
    sam_neck: int = 32
    sam_channels: tuple[int, int] = (40, 64)  # of the two stride-2 convolutions; the last is the CLIP width
    patch: int = 16
    image_size: int = 1024
    # CLIP
    clip_layers: int = 2
    clip_heads: int = 4
    clip_mlp: int = 128
    clip_image_size: int = 224
    clip_patch: int = 14

    @property
    def clip_width(self) -> int:
        return self.sam_channels[1]


FULL_SIZE = Sizes(
    hidden=1280, layers=12, heads=10, kv_heads=10, dense_mlp=6848, experts=64, top_k=6, expert_mlp=896,
    vocabulary=129280, max_positions=8192, sam_width=768, sam_layers=12, sam_heads=12, sam_global=(2, 5, 8, 11),
    sam_mlp=3072, sam_neck=256, sam_channels=(512, 1024), clip_layers=24, clip_heads=16, clip_mlp=4096,
)  # fmt: skip


def tensor_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint with its published name and its shape."""
    return dict(_shapes(sizes))


def _shapes(s: Sizes) -> Shapes:
    clip = "model.vision_model"
    yield from sam_shapes(s)
    yield f"{clip}.embeddings.class_embedding", (s.clip_width,)
    yield f"{clip}.embeddings.patch_embedding.weight", (s.clip_width, 3, s.clip_patch, s.clip_patch)
    yield f"{clip}.embeddings.position_embedding.weight", ((s.clip_image_size // s.clip_patch) ** 2 + 1, s.clip_width)
    yield from norm(f"{clip}.pre_layrnorm", s.clip_width)
    for i in range(s.clip_layers):
        at = f"{clip}.transformer.layers.{i}"
        yield from linear(f"{at}.self_attn.qkv_proj", s.clip_width, 3 * s.clip_width)
        yield from linear(f"{at}.self_attn.out_proj", s.clip_width, s.clip_width)
        yield from linear(f"{at}.mlp.fc1", s.clip_width, s.clip_mlp)
        yield from linear(f"{at}.mlp.fc2", s.clip_mlp, s.clip_width)
        yield from norm(f"{at}.layer_norm1", s.clip_width)
        yield from norm(f"{at}.layer_norm2", s.clip_width)

    yield from linear("model.projector.layers", 2 * s.clip_width, s.hidden)
    yield "model.image_newline", (s.hidden,)
    yield "model.view_seperator", (s.hidden,)
    yield from decoder_shapes(s)


def sam_shapes(s: Sizes) -> Shapes:
    """SAM, which both generations of DeepSeek-OCR have."""
    sam = "model.sam_model"
    grid = s.image_size // s.patch
    head = s.sam_width // s.sam_heads
    yield f"{sam}.pos_embed", (1, grid, grid, s.sam_width)
    yield f"{sam}.patch_embed.proj.weight", (s.sam_width, 3, s.patch, s.patch)
    yield f"{sam}.patch_embed.proj.bias", (s.sam_width,)
    for i in range(s.sam_layers):
        at = f"{sam}.blocks.{i}"
        side = grid if i in s.sam_global else s.sam_window
        yield from norm(f"{at}.norm1", s.sam_width)
        yield f"{at}.attn.rel_pos_h", (2 * side - 1, head)
        yield f"{at}.attn.rel_pos_w", (2 * side - 1, head)
        yield from linear(f"{at}.attn.qkv", s.sam_width, 3 * s.sam_width)
        yield from linear(f"{at}.attn.proj", s.sam_width, s.sam_width)
        yield from norm(f"{at}.norm2", s.sam_width)
        yield from linear(f"{at}.mlp.lin1", s.sam_width, s.sam_mlp)
        yield from linear(f"{at}.mlp.lin2", s.sam_mlp, s.sam_width)
    yield f"{sam}.neck.0.weight", (s.sam_neck, s.sam_width, 1, 1)
    yield from norm(f"{sam}.neck.1", s.sam_neck)
    yield f"{sam}.neck.2.weight", (s.sam_neck, s.sam_neck, 3, 3)
    yield from norm(f"{sam}.neck.3", s.sam_neck)
    yield f"{sam}.net_2.weight", (s.sam_channels[0], s.sam_neck, 3, 3)
    yield f"{sam}.net_3.weight", (s.sam_channels[1], s.sam_channels[0], 3, 3)


def decoder_shapes(s: Sizes) -> Shapes:
    """The decoder, which all of the line have."""
    yield "model.embed_tokens.weight", (s.vocabulary, s.hidden)
    for i in range(s.layers):
        at = f"model.layers.{i}"
        yield from attention(f"{at}.self_attn", s.hidden, s.heads, s.kv_heads, s.hidden // s.heads)
        yield from rms_norms(at, ("input_layernorm", "post_attention_layernorm"), s.hidden)
        if i < s.dense_layers:
            yield from gated_mlp(f"{at}.mlp", s.hidden, s.dense_mlp)
            continue
        yield f"{at}.mlp.gate.weight", (s.experts, s.hidden)
        yield from gated_mlp(f"{at}.mlp.shared_experts", s.hidden, s.expert_mlp * s.shared_experts)
        for expert in range(s.experts):
            yield from gated_mlp(f"{at}.mlp.experts.{expert}", s.hidden, s.expert_mlp)
    yield "model.norm.weight", (s.hidden,)
    yield "lm_head.weight", (s.vocabulary, s.hidden)


def published_config(s: Sizes) -> dict[str, object]:
    """config.json in the nesting of the published one: the decoder's values stand twice."""
    decoder = {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "first_k_dense_replace": s.dense_layers,
        "hidden_size": s.hidden,
        "intermediate_size": s.dense_mlp,
        "kv_lora_rank": None,
        "lm_head": True,
        "max_position_embeddings": s.max_positions,
        "moe_intermediate_size": s.expert_mlp,
        "n_group": 1,
        "n_routed_experts": s.experts,
        "n_shared_experts": s.shared_experts,
        "num_attention_heads": s.heads,
        "num_experts_per_tok": s.top_k,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads,
        "q_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "rm_head": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "use_mla": False,
        "v_head_dim": 0,
        "vocab_size": s.vocabulary,
    }
    return {
        "_name_or_path": "deepseek-ai/DeepSeek-OCR",
        "candidate_resolutions": [[s.image_size, s.image_size]],
        "global_view_pos": "head",
        "architectures": ["DeepseekOCRForCausalLM"],
        "language_config": {"architectures": ["DeepseekV2ForCausalLM"], **decoder, "torch_dtype": "bfloat16"},
        "model_type": "deepseek_vl_v2",
        "projector_config": {
            "input_dim": 2 * s.clip_width,
            "model_type": "mlp_projector",
            "n_embed": s.hidden,
            "projector_type": "linear",
        },
        "tile_tag": "2D",
        "torch_dtype": "bfloat16",
        "vision_config": {
            "image_size": s.image_size,
            "mlp_ratio": 3.7362,
            "model_name": "deeplip_b_l",
            "model_type": "vision",
            "width": {
                "clip-l-14-224": {
                    "heads": s.clip_heads,
                    "image_size": s.clip_image_size,
                    "layers": s.clip_layers,
                    "patch_size": s.clip_patch,
                    "width": s.clip_width,
                },
                "sam_vit_b": {
                    "downsample_channels": list(s.sam_channels),
                    "global_attn_indexes": list(s.sam_global),
                    "heads": s.sam_heads,
                    "layers": s.sam_layers,
                    "width": s.sam_width,
                },
            },
        },
        **decoder,
    }


def processor_config(s: Sizes) -> dict[str, object]:
    """processor_config.json as published."""
    return {
        "add_special_token": False,
        "candidate_resolutions": [[s.image_size, s.image_size]],
        "downsample_ratio": 4,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_token": "<image>",
        "normalize": True,
        "pad_token": PAD,
        "patch_size": s.patch,
        "processor_class": "DeepseekVLV2Processor",
        "sft_format": "deepseek",
    }


def small_tokenizer() -> Tokenizer:
    """A byte-level tokenizer: the three special tokens, the bytes, and the family's other tokens added behind them."""
    tokenizer = byte_tokenizer({BOS: 0, EOS: 1, PAD: 2}, start=3)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in MARKERS])
    return tokenizer


@dataclass(frozen=True)
class Layout:
    """What differs between the checkpoints of the line: tensors and config.json."""

    shapes: Callable[[Any], dict[str, tuple[int, ...]]]
    config: Callable[[Any], dict[str, object]]


DEEPSEEK_OCR = Layout(tensor_shapes, published_config)


def write_random_checkpoint(
    folder: Path, sizes: Sizes = Sizes(), *, seed: int = 0, tokenizer: Path | None = None, shards: int = 1,
    progress: bool = False, layout: Layout = DEEPSEEK_OCR,
) -> Path:  # fmt: skip
    """Write a checkpoint of random bfloat16 weights in the published layout, one tensor in memory at a time.

    Parameters
    ----------
    folder
        made if missing; files in it are overwritten.
    tokenizer
        a tokenizer.json to copy in; None writes a small byte-level one.
    shards
        1 gives the published single shard with its index; more spread the tensors evenly.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(layout.config(sizes), indent=1))
    (folder / "processor_config.json").write_text(json.dumps(processor_config(sizes), indent=1))
    if tokenizer is None:
        small_tokenizer().save(str(folder / "tokenizer.json"))
    else:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    shapes = layout.shapes(sizes)
    per_shard = math.ceil(len(shapes) / shards)
    names = list(shapes)
    weight_map = {}
    rng = np.random.default_rng(seed)
    with tqdm(total=sum(map(math.prod, shapes.values())) * 2, unit="B", unit_scale=True, disable=not progress) as bar:
        for shard in range(shards):
            # The published index spells the total with six digits.
            file = f"model-{shard + 1:05d}-of-{shards:06d}.safetensors"
            mine = names[shard * per_shard : (shard + 1) * per_shard]
            weight_map.update(dict.fromkeys(mine, file))
            write_safetensors(folder / file, {name: shapes[name] for name in mine}, rng, bar)
    index = {"metadata": {"total_size": 2 * sum(map(math.prod, shapes.values()))}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def main(full: Sizes = FULL_SIZE, layout: Layout = DEEPSEEK_OCR, doc: str | None = __doc__) -> None:
    """The command line, for every layout."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help="the published sizes: 6.7 GB")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json to copy in (default: a small byte-level one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    args = parser.parse_args()
    write_random_checkpoint(
        args.folder, full if args.full else type(full)(), seed=args.seed, tokenizer=args.tokenizer, shards=args.shards,
        progress=True, layout=layout,
    )  # fmt: skip


if __name__ == "__main__":
    main()
