"""Random checkpoints in the published LightOnOCR layout: real file names, real tensor names, any sizes.

For the tests (scaled down) and for figures at full size::

    python -m tools.lighton_checkpoints FOLDER --full

The tokenizer is a byte-level one with the special tokens at their published ids, the chat template one that writes the
published prompt: neither file was at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from models.patches import CLIP_MEAN, CLIP_STD

from .random_checkpoints import byte_tokenizer, main, write_folder
from .tensor_shapes import PageModelSizes, Shapes, attention, gated_mlp, rms_norms

IMAGE = 151655
SPECIAL = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|image_pad|>": IMAGE}
TEMPLATE = """\
{%- if messages[0].role != "system" %}{{- "<|im_start|>system<|im_end|>\\n" }}{%- endif %}
{%- for message in messages %}
    {{- "<|im_start|>" + message.role + "\\n" }}
    {%- for part in message.content %}
        {%- if part.type == "image" %}{{- "<|image_pad|>" }}{%- else %}{{- part.text }}{%- endif %}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\\n" }}{%- endif %}
"""


@dataclass(frozen=True)
class LightOnSizes(PageModelSizes):
    """Sizes of a LightOnOCR checkpoint; the defaults make a small one that keeps every part of the architecture."""

    head_dim: int = 32
    longest_edge: int = 1540
    head: bool = False  # with a tensor of the head, which is tied


FULL_SIZE = LightOnSizes(
    hidden=1024, layers=28, heads=16, kv_heads=8, head_dim=128, mlp=3072, vocabulary=151936, width=1024,
    vision_layers=24, vision_heads=16, vision_mlp=4096,
)  # fmt: skip


def tensor_shapes(sizes: LightOnSizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint with its published name and its shape."""
    return dict(_shapes(sizes))


def _shapes(s: LightOnSizes) -> Shapes:
    text = "model.language_model"
    yield f"{text}.embed_tokens.weight", (s.vocabulary, s.hidden)
    yield f"{text}.norm.weight", (s.hidden,)
    if s.head:
        yield "lm_head.weight", (s.vocabulary, s.hidden)
    for i in range(s.layers):
        at = f"{text}.layers.{i}"
        yield from attention(f"{at}.self_attn", s.hidden, s.heads, s.kv_heads, s.head_dim)
        yield from rms_norms(f"{at}.self_attn", ("q_norm", "k_norm"), s.head_dim)
        yield from gated_mlp(f"{at}.mlp", s.hidden, s.mlp)
        yield from rms_norms(at, ("input_layernorm", "post_attention_layernorm"), s.hidden)
    tower = "model.vision_encoder"
    yield f"{tower}.patch_conv.weight", (s.width, 3, s.patch, s.patch)
    yield f"{tower}.ln_pre.weight", (s.width,)
    for i in range(s.vision_layers):
        at = f"{tower}.transformer.layers.{i}"
        for name in ("q", "k", "v", "o"):
            yield f"{at}.attention.{name}_proj.weight", (s.width, s.width)
        yield from gated_mlp(f"{at}.feed_forward", s.width, s.vision_mlp)
        yield from rms_norms(at, ("attention_norm", "ffn_norm"), s.width)
    projection = "model.vision_projection"
    yield f"{projection}.norm.weight", (s.width,)
    yield f"{projection}.patch_merger.merging_layer.weight", (s.width, s.width * s.merge**2)
    yield f"{projection}.linear_1.weight", (s.hidden, s.width)
    yield f"{projection}.linear_2.weight", (s.hidden, s.hidden)


def published_config(s: LightOnSizes) -> dict[str, object]:
    """config.json as its sibling's is published: ``model_type`` is that of Mistral 3."""
    return {
        "architectures": ["LightOnOCRForConditionalGeneration"],
        "model_type": "mistral3",
        "dtype": "bfloat16",
        "image_token_id": IMAGE,
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": s.merge,
        "vision_feature_layer": -1,
        "text_config": {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": False,
            "attention_dropout": 0,
            "head_dim": s.head_dim,
            "hidden_act": "silu",
            "hidden_size": s.hidden,
            "initializer_range": 0.02,
            "intermediate_size": s.mlp,
            "max_position_embeddings": s.max_positions,
            "num_attention_heads": s.heads,
            "num_hidden_layers": s.layers,
            "num_key_value_heads": s.kv_heads,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000,
            "sliding_window": None,
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": s.vocabulary,
        },
        "vision_config": {
            "model_type": "pixtral",
            "attention_dropout": 0,
            "head_dim": s.width // s.vision_heads,
            "hidden_act": "silu",
            "hidden_size": s.width,
            "image_size": s.longest_edge,
            "initializer_range": 0.02,
            "intermediate_size": s.vision_mlp,
            "num_attention_heads": s.vision_heads,
            "num_channels": 3,
            "num_hidden_layers": s.vision_layers,
            "patch_size": s.patch,
            "rope_theta": 10000,
        },
    }


def processor_config(s: LightOnSizes) -> dict[str, object]:
    """processor_config.json as published."""
    return {
        "image_processor": {
            "data_format": "channels_first",
            "default_to_square": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(CLIP_MEAN),
            "image_processor_type": "PixtralImageProcessorFast",
            "image_std": list(CLIP_STD),
            "patch_size": s.patch,
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"longest_edge": s.longest_edge},
        },
        "patch_size": s.patch,
        "processor_class": "LightOnOcrProcessor",
        "spatial_merge_size": s.merge,
    }


def small_tokenizer() -> Tokenizer:
    """A byte-level tokenizer with the family's special tokens at their ids."""
    return byte_tokenizer(SPECIAL)


def write_lighton_checkpoint(
    folder: Path, sizes: LightOnSizes = LightOnSizes(), *, seed: int = 0, progress: bool = False
) -> Path:
    """Write a checkpoint of random bfloat16 weights in the published layout."""
    files: dict[str, object] = {
        "config.json": published_config(sizes),
        "processor_config.json": processor_config(sizes),
        "generation_config.json": {"eos_token_id": [151645, 151643], "pad_token_id": 151643},
        "chat_template.jinja": TEMPLATE,
    }
    return write_folder(folder, files, small_tokenizer(), tensor_shapes(sizes), seed=seed, progress=progress)


if __name__ == "__main__":
    main(write_lighton_checkpoint, LightOnSizes(), FULL_SIZE, "532 tensors, 2.01 GB", __doc__)
