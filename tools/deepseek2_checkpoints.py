"""Random checkpoints in the published DeepSeek-OCR-2 layout: real file names, real tensor names, any sizes::

python -m tools.deepseek2_checkpoints FOLDER --full --tokenizer path/to/tokenizer.json
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .checkpoints import FULL_SIZE as FIRST
from .checkpoints import Layout, Sizes, decoder_shapes, main, published_config, sam_shapes
from .tensor_shapes import Shapes, gated_mlp, linear, rms_norms

HEAD_DIM = 64  # of the encoder's attention, in the published code


@dataclass(frozen=True)
class Sizes2(Sizes):
    """Sizes of a DeepSeek-OCR-2 checkpoint; the defaults make a small one whose views have 192 and 256 pixels.

    The numbers of queries are those that transformers' module has built in: maps of 12 and 16 tokens a side.
    """

    patch: int = 4
    image_size: int = 256
    sam_channels: tuple[int, int] = (40, 128)  # the last is the encoder's width
    encoder_layers: int = 2
    encoder_kv_heads: int = 1
    encoder_mlp: int = 160
    queries: tuple[int, int] = (144, 256)

    @property
    def encoder_width(self) -> int:
        return self.sam_channels[1]


FULL_SIZE = Sizes2(
    **{name: value for name, value in vars(FIRST).items() if name not in ("patch", "image_size", "sam_channels")},
    patch=16, image_size=1024, sam_channels=(512, 896), encoder_layers=24, encoder_kv_heads=2, encoder_mlp=4864,
)  # fmt: skip


def tensor_shapes(sizes: Sizes2) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint with its published name and its shape."""
    return dict(_shapes(sizes))


def _shapes(s: Sizes2) -> Shapes:
    yield from sam_shapes(s)
    width, kv_width = s.encoder_width, s.encoder_kv_heads * HEAD_DIM
    for name, rows in zip((768, 1024), s.queries, strict=True):
        yield f"model.qwen2_model.query_{name}.weight", (rows, width)
    for i in range(s.encoder_layers):
        at = f"model.qwen2_model.model.model.layers.{i}"
        # The tower's width may be no multiple of a head's: an exporter has to refuse such a checkpoint.
        for part, out in (("q", width), ("k", kv_width), ("v", kv_width)):
            yield from linear(f"{at}.self_attn.{part}_proj", width, out)
        yield f"{at}.self_attn.o_proj.weight", (width, width)
        yield from gated_mlp(f"{at}.mlp", width, s.encoder_mlp)
        yield from rms_norms(at, ("input_layernorm", "post_attention_layernorm"), width)
    yield "model.qwen2_model.model.model.norm.weight", (width,)
    yield from linear("model.projector.layers", width, s.hidden)
    yield "model.view_seperator", (s.hidden,)
    yield from decoder_shapes(s)


def config(s: Sizes2) -> dict[str, object]:
    """config.json as published: SAM's last width in it is the first generation's."""
    first: dict[str, Any] = published_config(replace(s, sam_channels=(s.sam_channels[0], 1024)))
    vision = first["vision_config"]
    widths = {"qwen2-0-5b": {"dim": s.encoder_width}, "sam_vit_b": vision["width"]["sam_vit_b"]}
    return {
        **first,
        "_name_or_path": "deepseek-ai/DeepSeek-OCR-2",
        "architectures": ["DeepseekOCR2ForCausalLM"],
        "projector_config": {**first["projector_config"], "input_dim": s.encoder_width},
        "vision_config": {**vision, "model_name": "deepencoderv2", "width": widths},
    }


DEEPSEEK_OCR_2 = Layout(tensor_shapes, config)


if __name__ == "__main__":
    main(FULL_SIZE, DEEPSEEK_OCR_2, __doc__)
