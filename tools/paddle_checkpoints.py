"""Random checkpoints in the published PaddleOCR-VL layout: real file names, real tensor names, any sizes.

For the tests (scaled down) and for figures at full size::

    python -m tools.paddle_checkpoints FOLDER --full

The tokenizer is a byte-level one with the published special tokens at their published ids, between which most of the
vocabulary is empty. See ``tools.random_checkpoints`` for how the weights are drawn.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from .random_checkpoints import byte_tokenizer, write_folder
from .tensor_shapes import PageModelSizes, Shapes, attention, gated_mlp, linear, norm, rms_norms

IMAGE, IMAGE_START, IMAGE_END = 100295, 101305, 101306
BEGIN, END, PLACEHOLDER = "<|begin_of_sentence|>", "<|end_of_sentence|>", "<|IMAGE_PLACEHOLDER|>"

# Published ids. The thousand <|LOC_n|> between them, which say where things are, are left out.
SPECIAL = {
    "<unk>": 0, "<s>": 1, "</s>": 2, END: 100272, BEGIN: 100273, PLACEHOLDER: IMAGE, "<|AUDIO_PLACEHOLDER|>": 100296,
    "<|IMAGE_SEP|>": 101303, "<|image_pad|>": 101304, "<|IMAGE_START|>": IMAGE_START, "<|IMAGE_END|>": IMAGE_END,
    "<|video_pad|>": 101307,
}  # fmt: skip
CELLS = {"<ecel>": 101308, "<fcel>": 101309, "<xcel>": 101310, "<lcel>": 101311, "<ucel>": 101312, "<nl>": 101313}

_TEMPLATE = """\
{%- if not add_generation_prompt is defined -%}
    {%- set add_generation_prompt = true -%}
{%- endif -%}
{%- if not cls_token is defined -%}
    {%- set cls_token = "<|begin_of_sentence|>" -%}
{%- endif -%}
{%- if not eos_token is defined -%}
    {%- set eos_token = "</s>" -%}
{%- endif -%}
{{- cls_token -}}
{%- for message in messages -%}
    {%- if message["role"] == "user" -%}
        {{- "User: " -}}
        {%- for content in message["content"] -%}
            {%- if content["type"] == "image" -%}
                {{ "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>" }}
            {%- endif -%}
        {%- endfor -%}
        {%- for content in message["content"] -%}
            {%- if content["type"] == "text" -%}
                {{ content["text"] }}
            {%- endif -%}
        {%- endfor -%}
        {{ "\\n" -}}
    {%- elif message["role"] == "assistant" -%}
        {{- "ASSISTANT" -}}
        {%- for content in message["content"] -%}
            {%- if content["type"] == "text" -%}
                {{ content["text"] }}
            {%- endif -%}
        {%- endfor -%}
        {{ eos_token -}}
    {%- elif message["role"] == "system" -%}
        {%- for content in message["content"] -%}
            {%- if content["type"] == "text" -%}
                {{ content["text"] + "\\n" }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "ASSISTANT" -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class Revision:
    """What differs between the published revisions."""

    chat_template: str
    min_pixels: int
    max_pixels: int


V1_0 = Revision(_TEMPLATE.replace("ASSISTANT", "Assistant: "), 147384, 2822400)
V1_5 = Revision(_TEMPLATE.replace("ASSISTANT", "Assistant:\\n"), 112896, 1003520)


@dataclass(frozen=True)
class PaddleSizes(PageModelSizes):
    """Sizes of a PaddleOCR-VL checkpoint; the defaults make a small one that keeps every part of the architecture."""

    vocabulary: int = 101376
    head_dim: int = 32
    sections: tuple[int, int, int] = (4, 6, 6)  # of head_dim
    vision_heads: int = 2
    image_size: int = 384
    unused: bool = True  # with the tensors that some revisions have and nobody needs
    packed_positions: int = 64  # rows of one of those

    @property
    def grid(self) -> int:
        return self.image_size // self.patch


FULL_SIZE = PaddleSizes(
    hidden=1024, layers=18, heads=16, kv_heads=2, head_dim=128, sections=(16, 24, 24), mlp=3072, vocabulary=103424,
    max_positions=131072, width=1152, vision_layers=27, vision_heads=16, vision_mlp=4304, packed_positions=32768,
)  # fmt: skip


def tensor_shapes(sizes: PaddleSizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint with its published name and its shape."""
    return dict(_shapes(sizes))


def _shapes(s: PaddleSizes) -> Shapes:
    yield "model.embed_tokens.weight", (s.vocabulary, s.hidden)
    yield "lm_head.weight", (s.vocabulary, s.hidden)
    yield "model.norm.weight", (s.hidden,)
    for i in range(s.layers):
        at = f"model.layers.{i}"
        yield from attention(f"{at}.self_attn", s.hidden, s.heads, s.kv_heads, s.head_dim)
        yield from gated_mlp(f"{at}.mlp", s.hidden, s.mlp)
        yield from rms_norms(at, ("input_layernorm", "post_attention_layernorm"), s.hidden)
    vision = "visual.vision_model"
    yield f"{vision}.embeddings.patch_embedding.weight", (s.width, 3, s.patch, s.patch)
    yield f"{vision}.embeddings.patch_embedding.bias", (s.width,)
    yield f"{vision}.embeddings.position_embedding.weight", (s.grid**2, s.width)
    for i in range(s.vision_layers):
        at = f"{vision}.encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{at}.self_attn.{name}", s.width, s.width)
        yield from norm(f"{at}.layer_norm1", s.width)
        yield from norm(f"{at}.layer_norm2", s.width)
        yield from linear(f"{at}.mlp.fc1", s.width, s.vision_mlp)
        yield from linear(f"{at}.mlp.fc2", s.vision_mlp, s.width)
    yield from norm(f"{vision}.post_layernorm", s.width)
    wide = s.width * s.merge**2
    yield from norm("mlp_AR.pre_norm", s.width)
    yield from linear("mlp_AR.linear_1", wide, wide)
    yield from linear("mlp_AR.linear_2", wide, s.hidden)
    if not s.unused:
        return
    yield f"{vision}.embeddings.packing_position_embedding.weight", (s.packed_positions, s.width)
    yield f"{vision}.head.probe", (1, 1, s.width)
    yield f"{vision}.head.attention.in_proj_weight", (3 * s.width, s.width)
    yield f"{vision}.head.attention.in_proj_bias", (3 * s.width,)
    yield from linear(f"{vision}.head.attention.out_proj", s.width, s.width)
    yield from norm(f"{vision}.head.layernorm", s.width)
    yield from linear(f"{vision}.head.mlp.fc1", s.width, s.vision_mlp)
    yield from linear(f"{vision}.head.mlp.fc2", s.vision_mlp, s.width)


def published_config(s: PaddleSizes) -> dict[str, object]:
    """config.json as published: the decoder's values at the top level, no bos and eos."""
    return {
        "architectures": ["PaddleOCRVLForConditionalGeneration"],
        "head_dim": s.head_dim,
        "hidden_act": "silu",
        "hidden_size": s.hidden,
        "image_token_id": IMAGE,
        "intermediate_size": s.mlp,
        "max_position_embeddings": s.max_positions,
        "model_type": "paddleocr_vl",
        "num_attention_heads": s.heads,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"mrope_section": list(s.sections), "rope_type": "default", "type": "default"},
        "rope_theta": 500000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_bias": False,
        "video_token_id": 101307,
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": s.width,
            "image_size": s.image_size,
            "intermediate_size": s.vision_mlp,
            "layer_norm_eps": 1e-06,
            "model_type": "paddleocr_vl",
            "num_attention_heads": s.vision_heads,
            "num_channels": 3,
            "num_hidden_layers": s.vision_layers,
            "pad_token_id": 0,
            "patch_size": s.patch,
            "spatial_merge_size": s.merge,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "torch_dtype": "bfloat16",
        },
        "vision_start_token_id": IMAGE_START,
        "vision_end_token_id": IMAGE_END,
        "vocab_size": s.vocabulary,
        "weight_share_add_bias": True,
        "use_3d_rope": True,
        "rope_is_neox_style": True,
    }


def preprocessor_config(s: PaddleSizes, revision: Revision) -> dict[str, object]:
    """preprocessor_config.json as published."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "PaddleOCRVLImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "max_pixels": revision.max_pixels,
        "merge_size": s.merge,
        "min_pixels": revision.min_pixels,
        "patch_size": s.patch,
        "processor_class": "PaddleOCRVLProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "temporal_patch_size": 1,
    }


def small_tokenizer() -> Tokenizer:
    """A byte-level tokenizer with the family's special tokens at their ids."""
    return byte_tokenizer(SPECIAL, CELLS, start=3)


def write_paddle_checkpoint(
    folder: Path, sizes: PaddleSizes = PaddleSizes(), revision: Revision = V1_0, *, seed: int = 0,
    progress: bool = False,
) -> Path:  # fmt: skip
    """Write a checkpoint of random bfloat16 weights in the published layout, one tensor in memory at a time."""
    files: dict[str, object] = {
        "config.json": published_config(sizes),
        "preprocessor_config.json": preprocessor_config(sizes, revision),
        "processor_config.json": {"processor_class": "PaddleOCRVLProcessor"},
        "generation_config.json": {"eos_token_id": 2, "pad_token_id": 0, "use_cache": False},
        "special_tokens_map.json": {
            "bos_token": {"content": "<s>"}, "cls_token": {"content": BEGIN}, "eos_token": {"content": "</s>"},
            "pad_token": {"content": "<unk>"}, "sep_token": {"content": END}, "unk_token": {"content": "<unk>"},
        },
        "chat_template.jinja": revision.chat_template,
    }  # fmt: skip
    return write_folder(folder, files, small_tokenizer(), tensor_shapes(sizes), seed=seed, progress=progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help="the published sizes: 620 tensors, 1.92 GB")
    parser.add_argument("--revision", choices=("1.0", "1.5"), default="1.0", help="template and image limits")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_paddle_checkpoint(
        args.folder, FULL_SIZE if args.full else PaddleSizes(), V1_0 if args.revision == "1.0" else V1_5,
        seed=args.seed, progress=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
