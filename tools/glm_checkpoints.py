"""Random checkpoints in the published GLM-OCR layout: real file names, real tensor names, any sizes::

    python -m tools.glm_checkpoints FOLDER --full

The published tokenizer and chat template cannot be fetched where this project is developed. In their place stand a
byte-level tokenizer with the published ids of the special tokens and of single bytes, and a template that writes the
published prompt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from models.patches import CLIP_MEAN, CLIP_STD

from .random_checkpoints import byte_tokenizer, main, write_folder
from .tensor_shapes import PageModelSizes, Shapes, attention, gated_mlp, linear, norm, rms_norms

FIRST_SPECIAL = 59246
SPECIAL = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
    "<|begin_of_audio|>", "<|end_of_audio|>", "<|begin_of_transcription|>", "<|end_of_transcription|>",
    "<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
    "<tool_response>", "</tool_response>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink",
    "<|begin_of_box|>", "<|end_of_box|>", "<|image|>", "<|video|>",
)  # fmt: skip
SPECIAL_IDS = {token: FIRST_SPECIAL + i for i, token in enumerate(SPECIAL)}
IMAGE, USER, END = (SPECIAL_IDS[token] for token in ("<|image|>", "<|user|>", "<|endoftext|>"))

TEMPLATE = """\
[gMASK]<sop>
{%- macro visible_text(content) -%}
    {%- if content is string -%}
        {{- content }}
    {%- else -%}
        {%- for item in content -%}
            {%- if item.type == 'image' -%}
                <|begin_of_image|><|image|><|end_of_image|>
            {%- elif item.type == 'text' -%}
                {{- item.text }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for m in messages -%}
    {%- if m.role == 'user' -%}
        {{- '<|user|>\\n' + visible_text(m.content) }}
    {%- elif m.role == 'system' -%}
        {{- '<|system|>\\n' + visible_text(m.content) }}
    {%- elif m.role == 'assistant' -%}
        {{- '<|assistant|>\\n' + visible_text(m.content) }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>\\n' }}
    {%- if enable_thinking is defined and not enable_thinking -%}
        {{- '<think></think>\\n' }}
    {%- endif -%}
{%- endif -%}
"""


@dataclass(frozen=True)
class GlmSizes(PageModelSizes):
    """Sizes of a GLM-OCR checkpoint; the defaults make a small one that keeps every part of the architecture."""

    vocabulary: int = 59392
    head_dim: int = 32
    sections: tuple[int, int, int] = (4, 6, 6)  # of head_dim, which is more than hidden / heads, as published
    drafts: int = 1  # layers for multi-token prediction
    frames: int = 2


FULL_SIZE = GlmSizes(
    hidden=1536, layers=16, heads=16, kv_heads=8, head_dim=128, sections=(16, 24, 24), mlp=4608, max_positions=131072,
    width=1024, vision_layers=24, vision_heads=16, vision_mlp=4096,
)  # fmt: skip


def tensor_shapes(sizes: GlmSizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint with its published name and its shape."""
    return dict(_shapes(sizes))


def _shapes(s: GlmSizes) -> Shapes:
    decoder, vision = "model.language_model", "model.visual"
    yield f"{decoder}.embed_tokens.weight", (s.vocabulary, s.hidden)
    yield "lm_head.weight", (s.vocabulary, s.hidden)
    yield f"{decoder}.norm.weight", (s.hidden,)
    for i in range(s.layers + s.drafts):
        yield from _layer(f"{decoder}.layers.{i}", s)
    for i in range(s.layers, s.layers + s.drafts):
        at = f"{decoder}.layers.{i}"
        yield f"{at}.eh_proj.weight", (s.hidden, 2 * s.hidden)
        yield from rms_norms(at, ("enorm", "hnorm", "shared_head.norm"), s.hidden)
        for name in ("embed_tokens", "shared_head.head"):
            yield f"{at}.{name}.weight", (s.vocabulary, s.hidden)
    yield f"{vision}.patch_embed.proj.weight", (s.width, 3, s.frames, s.patch, s.patch)
    yield f"{vision}.patch_embed.proj.bias", (s.width,)
    for i in range(s.vision_layers):
        at = f"{vision}.blocks.{i}"
        yield from linear(f"{at}.attn.qkv", s.width, 3 * s.width)
        yield from linear(f"{at}.attn.proj", s.width, s.width)
        yield from rms_norms(f"{at}.attn", ("q_norm", "k_norm"), s.width // s.vision_heads)
        yield from rms_norms(at, ("norm1", "norm2"), s.width)
        yield from linear(f"{at}.mlp.gate_proj", s.width, s.vision_mlp)
        yield from linear(f"{at}.mlp.up_proj", s.width, s.vision_mlp)
        yield from linear(f"{at}.mlp.down_proj", s.vision_mlp, s.width)
    yield f"{vision}.post_layernorm.weight", (s.width,)
    yield f"{vision}.downsample.weight", (s.hidden, s.width, s.merge, s.merge)
    yield f"{vision}.downsample.bias", (s.hidden,)
    merger = f"{vision}.merger"
    yield f"{merger}.proj.weight", (s.hidden, s.hidden)
    yield from norm(f"{merger}.post_projection_norm", s.hidden)
    yield from gated_mlp(merger, s.hidden, 3 * s.hidden)


def _layer(at: str, s: GlmSizes) -> Shapes:
    yield from attention(f"{at}.self_attn", s.hidden, s.heads, s.kv_heads, s.head_dim)
    yield f"{at}.mlp.gate_up_proj.weight", (2 * s.mlp, s.hidden)
    yield f"{at}.mlp.down_proj.weight", (s.hidden, s.mlp)
    for name in ("input", "post_self_attn", "post_attention", "post_mlp"):
        yield f"{at}.{name}_layernorm.weight", (s.hidden,)


def published_config(s: GlmSizes) -> dict[str, object]:
    """config.json as published."""
    return {
        "architectures": ["GlmOcrForConditionalGeneration"],
        "model_type": "glm_ocr",
        "text_config": {
            "model_type": "glm_ocr_text",
            "pad_token_id": END,
            "vocab_size": s.vocabulary,
            "eos_token_id": [END, USER],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "head_dim": s.head_dim,
            "hidden_act": "silu",
            "hidden_size": s.hidden,
            "initializer_range": 0.02,
            "intermediate_size": s.mlp,
            "max_position_embeddings": s.max_positions,
            "num_attention_heads": s.heads,
            "num_hidden_layers": s.layers,
            "num_nextn_predict_layers": s.drafts,
            "num_key_value_heads": s.kv_heads,
            "rms_norm_eps": 1e-05,
            "dtype": "bfloat16",
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": list(s.sections),
                "partial_rotary_factor": 1.0,
                "rope_theta": 10000,
            },
            "tie_word_embeddings": False,
            "use_cache": True,
        },
        "vision_config": {
            "model_type": "glm_ocr_vision",
            "hidden_size": s.width,
            "depth": s.vision_layers,
            "num_heads": s.vision_heads,
            "attention_bias": True,
            "intermediate_size": s.vision_mlp,
            "hidden_act": "silu",
            "hidden_dropout_prob": 0.0,
            "initializer_range": 0.02,
            "image_size": 336,
            "patch_size": s.patch,
            "out_hidden_size": s.hidden,
            "rms_norm_eps": 1e-05,
            "spatial_merge_size": s.merge,
            "temporal_patch_size": s.frames,
        },
        "image_start_token_id": SPECIAL_IDS["<|begin_of_image|>"],
        "image_end_token_id": SPECIAL_IDS["<|end_of_image|>"],
        "video_start_token_id": SPECIAL_IDS["<|begin_of_video|>"],
        "video_end_token_id": SPECIAL_IDS["<|end_of_video|>"],
        "image_token_id": IMAGE,
        "video_token_id": SPECIAL_IDS["<|video|>"],
        "transformers_version": "5.0.1dev0",
    }


def preprocessor_config(s: GlmSizes) -> dict[str, object]:
    """preprocessor_config.json as published."""
    return {
        "size": {"shortest_edge": 12544, "longest_edge": 9633792},
        "do_rescale": True,
        "patch_size": s.patch,
        "temporal_patch_size": s.frames,
        "merge_size": s.merge,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "image_processor_type": "Glm46VImageProcessor",
        "processor_class": "Glm46VProcessor",
    }


def small_tokenizer() -> Tokenizer:
    """Byte-level, each byte at its own number, as published; which added tokens are not special is a guess."""
    marked = {token: number for token, number in SPECIAL_IDS.items() if not token.startswith(_UNMARKED)}
    others = {token: number for token, number in SPECIAL_IDS.items() if token not in marked}
    tokenizer = byte_tokenizer(marked, others)
    document = json.loads(tokenizer.to_str())
    document["model"]["ignore_merges"] = True
    vocabulary = document["model"]["vocab"]
    vocabulary |= {character: byte for byte, character in enumerate(_byte_characters())}
    return Tokenizer.from_str(json.dumps(document))


_UNMARKED = ("<think", "</think", "<tool_", "</tool_", "<arg_", "</arg_", "/nothink", "<|code_")


def _byte_characters() -> list[str]:
    """GPT-2's character for each byte: itself where it can be seen, else one from 256 on, in order."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + unseen.index(byte)) for byte in range(256)]


def write_glm_checkpoint(
    folder: Path, sizes: GlmSizes = GlmSizes(), *, seed: int = 0, progress: bool = False
) -> Path:  # fmt: skip
    """Write a checkpoint of random bfloat16 weights in the published layout, one tensor in memory at a time."""
    documents: dict[str, object] = {
        "config.json": published_config(sizes),
        "preprocessor_config.json": preprocessor_config(sizes),
        "generation_config.json": {
            "_from_model_config": True, "do_sample": False, "eos_token_id": [END, USER], "pad_token_id": END,
        },
        "tokenizer_config.json": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "chat_template.jinja": TEMPLATE,
    }  # fmt: skip
    return write_folder(folder, documents, small_tokenizer(), tensor_shapes(sizes), seed=seed, progress=progress)


if __name__ == "__main__":
    main(write_glm_checkpoint, GlmSizes(), FULL_SIZE, "526 tensors, 2.65 GB", __doc__)
