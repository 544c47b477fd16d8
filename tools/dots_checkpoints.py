"""Random checkpoints in the published dots.ocr layout: real file names, real tensor names, any sizes.

For the tests (scaled down) and for figures at full size::

    python -m tools.dots_checkpoints FOLDER --full

The tokenizer is a byte-level one with the published special tokens at their published ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from models.dots_ocr.prompts import PLACEHOLDER
from models.patches import CLIP_MEAN, CLIP_STD

from .random_checkpoints import byte_tokenizer, main, write_folder
from .tensor_shapes import PageModelSizes, Shapes, attention, gated_mlp, linear, norm, rms_norms

IMAGE = 151665
SPECIAL = {
    "<|endoftext|>": 151643, PLACEHOLDER: IMAGE, "<|img|>": 151666, "<|endofimg|>": 151667, "<|systemprompt|>": 151668,
    "<|endofsystemprompt|>": 151669, "<|user|>": 151670, "<|endofuser|>": 151671, "<|assistant|>": 151672,
    "<|endofassistant|>": 151673,
}  # fmt: skip
EOS = (151643, 151673)
EOS_OF_MOCR = (151643, 151672, 151673)


@dataclass(frozen=True)
class DotsSizes(PageModelSizes):
    """Sizes of a dots.ocr checkpoint; the defaults make a small one that keeps every part of the architecture."""

    eos: tuple[int, ...] = EOS

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


FULL_SIZE = DotsSizes(
    hidden=1536, layers=28, heads=12, kv_heads=2, mlp=8960, vocabulary=151936, max_positions=131072, width=1536,
    vision_layers=42, vision_heads=12, vision_mlp=4224,
)  # fmt: skip


def tensor_shapes(sizes: DotsSizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint with its published name and its shape."""
    return dict(_shapes(sizes))


def _shapes(s: DotsSizes) -> Shapes:
    yield "model.embed_tokens.weight", (s.vocabulary, s.hidden)
    yield "lm_head.weight", (s.vocabulary, s.hidden)
    yield "model.norm.weight", (s.hidden,)
    for i in range(s.layers):
        at = f"model.layers.{i}"
        yield from attention(f"{at}.self_attn", s.hidden, s.heads, s.kv_heads, s.head_dim, bias=True)
        yield from gated_mlp(f"{at}.mlp", s.hidden, s.mlp)
        yield from rms_norms(at, ("input_layernorm", "post_attention_layernorm"), s.hidden)
    tower = "vision_tower"
    yield f"{tower}.patch_embed.patchifier.proj.weight", (s.width, 3, s.patch, s.patch)
    yield f"{tower}.patch_embed.patchifier.proj.bias", (s.width,)
    yield f"{tower}.patch_embed.patchifier.norm.weight", (s.width,)
    for i in range(s.vision_layers):
        at = f"{tower}.blocks.{i}"
        yield f"{at}.attn.qkv.weight", (3 * s.width, s.width)
        yield f"{at}.attn.proj.weight", (s.width, s.width)
        yield f"{at}.mlp.fc1.weight", (s.vision_mlp, s.width)
        yield f"{at}.mlp.fc2.weight", (s.width, s.vision_mlp)
        yield f"{at}.mlp.fc3.weight", (s.vision_mlp, s.width)
        yield from rms_norms(at, ("norm1", "norm2"), s.width)
    yield f"{tower}.post_trunk_norm.weight", (s.width,)
    wide = s.width * s.merge**2
    yield from norm(f"{tower}.merger.ln_q", s.width)
    yield from linear(f"{tower}.merger.mlp.0", wide, wide)
    yield from linear(f"{tower}.merger.mlp.2", wide, s.hidden)


def published_config(s: DotsSizes) -> dict[str, object]:
    """config.json as published: no id that ends an answer stands there."""
    return {
        "architectures": ["DotsOCRForCausalLM"],
        "model_type": "dots_ocr",
        "auto_map": {
            "AutoConfig": "configuration_dots.DotsOCRConfig",
            "AutoModelForCausalLM": "modeling_dots_ocr.DotsOCRForCausalLM",
        },
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": s.hidden,
        "initializer_range": 0.02,
        "intermediate_size": s.mlp,
        "max_position_embeddings": s.max_positions,
        "max_window_layers": 28,
        "num_attention_heads": s.heads,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": s.vocabulary,
        "image_token_id": IMAGE,
        "video_token_id": 151656,
        "vision_config": {
            "embed_dim": s.width,
            "hidden_size": s.hidden,
            "intermediate_size": s.vision_mlp,
            "num_hidden_layers": s.vision_layers,
            "num_attention_heads": s.vision_heads,
            "num_channels": 3,
            "patch_size": s.patch,
            "post_norm": True,
            "rms_norm_eps": 1e-05,
            "spatial_merge_size": s.merge,
            "temporal_patch_size": 1,
            "use_bias": False,
            "attn_implementation": "flash_attention_2",
            "init_merger_std": 0.02,
            "initializer_range": 0.02,
            "is_causal": False,
        },
    }


def preprocessor_config(s: DotsSizes) -> dict[str, object]:
    """preprocessor_config.json as published."""
    return {
        "auto_map": {"AutoProcessor": "configuration_dots.DotsVLProcessor"},
        "min_pixels": 3136,
        "max_pixels": 11289600,
        "patch_size": s.patch,
        "temporal_patch_size": 1,
        "merge_size": s.merge,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "DotsVLProcessor",
    }


def small_tokenizer() -> Tokenizer:
    """A byte-level tokenizer with the family's special tokens at their ids."""
    return byte_tokenizer(SPECIAL)


def write_dots_checkpoint(
    folder: Path, sizes: DotsSizes = DotsSizes(), *, seed: int = 0, progress: bool = False
) -> Path:
    """Write a checkpoint of random bfloat16 weights in the published layout."""
    files: dict[str, object] = {
        "config.json": published_config(sizes),
        "preprocessor_config.json": preprocessor_config(sizes),
        "generation_config.json": {"max_length": 32768, "eos_token_id": list(sizes.eos)},
        "special_tokens_map.json": {"eos_token": {"content": "<|endoftext|>"}, "pad_token": "[PAD]"},
    }
    return write_folder(folder, files, small_tokenizer(), tensor_shapes(sizes), seed=seed, progress=progress)


if __name__ == "__main__":
    main(write_dots_checkpoint, DotsSizes(), FULL_SIZE, "643 tensors, 6.08 GB", __doc__)
