"""The scaled-down DeepSeek-OCR: its sizes, its transformers module, and its checkpoint folder in the published layout.

`transformers` ships the family's vision tower and decoder as `unlimited_ocr`; with full attention in every layer it
computes what DeepSeek-OCR v1 computes, and it knows the published tensor names. Called by `train` and by the tests.
"""

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import UnlimitedOcrConfig, UnlimitedOcrForConditionalGeneration
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from . import tokens


@dataclass(frozen=True)
class TinySpec:
    """Sizes of one tiny model; the defaults are the shipped one."""

    base_size: int = 256  # side of the global view, pixels
    image_size: int = 224  # side of a tile, pixels
    max_tiles: int = 9
    patch_size: int = 8  # SAM patch; a vision token covers 4 x 4 of them
    sam_width: int = 128
    sam_layers: int = 4
    sam_heads: int = 2
    sam_mlp: int = 512
    sam_window: int = 8  # divides the global view's grid (32 patches); a tile's (28) is padded to it
    sam_global: tuple[int, ...] = (2,)  # layers with global attention
    neck: int = 128  # channels of the SAM neck
    downsample: tuple[int, int] = (128, 256)  # channels of the two stride-2 convs; the last is the CLIP width
    clip_layers: int = 2
    clip_heads: int = 4
    clip_mlp: int = 512
    hidden: int = 256
    layers: int = 5  # decoder layers; the first is dense
    heads: int = 8
    dense_mlp: int = 352
    expert_mlp: int = 32
    experts: int = 8
    experts_per_token: int = 2
    shared_experts: int = 6
    max_positions: int = 4096

    @property
    def token_pixels(self) -> int:
        """Side of the image square that one vision token covers."""
        return self.patch_size * 4


def build_config(spec: TinySpec) -> UnlimitedOcrConfig:
    """Return the transformers configuration of `spec`."""
    clip_side = spec.base_size // spec.token_pixels
    return UnlimitedOcrConfig(
        vision_config={
            "sam_config": {
                "hidden_size": spec.sam_width,
                "output_channels": spec.neck,
                "num_hidden_layers": spec.sam_layers,
                "num_attention_heads": spec.sam_heads,
                "image_size": spec.base_size,
                "patch_size": spec.patch_size,
                "window_size": spec.sam_window,
                "global_attn_indexes": list(spec.sam_global),
                "mlp_dim": spec.sam_mlp,
                "downsample_channels": list(spec.downsample),
                "initializer_range": 0.02,
            },
            "encoder_config": {
                "hidden_size": spec.downsample[-1],
                "intermediate_size": spec.clip_mlp,
                "num_hidden_layers": spec.clip_layers,
                "num_attention_heads": spec.clip_heads,
                "image_size": clip_side * spec.token_pixels,
                "patch_size": spec.token_pixels,
            },
        },
        text_config={
            "vocab_size": tokens.VOCAB_SIZE,
            "hidden_size": spec.hidden,
            "intermediate_size": spec.dense_mlp,
            "num_hidden_layers": spec.layers,
            "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.heads,
            "max_position_embeddings": spec.max_positions,
            "bos_token_id": tokens.BOS_ID,
            "eos_token_id": tokens.EOS_ID,
            "pad_token_id": None,
            "n_routed_experts": spec.experts,
            "num_experts_per_tok": spec.experts_per_token,
            "n_shared_experts": spec.shared_experts,
            "moe_intermediate_size": spec.expert_mlp,
            "layer_types": ["full_attention"] * spec.layers,
        },
        image_token_id=tokens.IMAGE_ID,
        tie_word_embeddings=False,
    )


def dense_experts(module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Compute every expert for every token and weigh by the routing: the same sum as the sparse loop, in two products.

    With experts this small one large matrix product beats eight gathers; gradients are the same, since the weight of
    an expert that was not chosen is zero.

    hidden : shape = (tokens, hidden); top_k_index, top_k_weights : shape = (tokens, k). Returns (tokens, hidden).
    """
    weights = hidden.new_zeros(hidden.shape[0], module.num_experts)
    weights = weights.scatter(1, top_k_index, top_k_weights.to(hidden.dtype))
    gate_up = hidden @ module.gate_up_proj.flatten(0, 1).t().to(hidden.dtype)
    gate, up = gate_up.unflatten(1, (module.num_experts, 2, -1)).unbind(2)
    inner = module.act_fn(gate) * up * weights[:, :, None]
    down = module.down_proj.transpose(1, 2).flatten(0, 1).to(hidden.dtype)
    summed: Tensor = inner.flatten(1, 2) @ down
    return summed


def plain_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, **kwargs: object
) -> tuple[Tensor, None]:
    """Attention as three plain operators in the model's own dtype: in bfloat16 twice as fast as SDPA on CPUs.

    Causal where the module says so; sequences are padded on the right only, so no other mask is needed.

    query : shape = (batch, heads, queries, head_dim); key, value : (batch, heads, keys, head_dim).
    Returns (batch, queries, heads, head_dim).
    """
    scores = (query * scaling) @ key.transpose(-1, -2)
    if module.is_causal and query.shape[2] > 1:
        queries, keys = scores.shape[-2:]
        future = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).triu(keys - queries + 1)
        scores = scores.masked_fill(future, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


def folded_sam_attention(module: Any, hidden_states: Tensor) -> tuple[Tensor, None]:
    """SAM attention with the decomposed relative positions folded into the query-key product.

    The bias of (query, key) is rel_h[query, row of key] + rel_w[query, column of key]: a product of the two tables with
    the one-hot rows and columns of the keys. Appended to query and key it costs no tensor of its own.

    hidden_states : shape = (batch, height, width, channels), height = width. Returns the same shape.
    """
    hidden = hidden_states
    batch, height, width, _ = hidden.shape
    heads, area = module.num_attention_heads, height * width
    query, key, value = module.qkv(hidden).reshape(batch, area, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    grid = query.reshape(batch * heads, height, width, -1)
    rel_h = torch.einsum("bhwc,hkc->bhwk", grid, module.get_rel_pos(height, height, module.rel_pos_h))
    rel_w = torch.einsum("bhwc,wkc->bhwk", grid, module.get_rel_pos(width, width, module.rel_pos_w))
    rows = torch.eye(height, dtype=hidden.dtype, device=hidden.device).repeat_interleave(width, 0)
    columns = torch.eye(width, dtype=hidden.dtype, device=hidden.device).repeat(height, 1)
    places = torch.cat((rows, columns), dim=1).expand(batch, heads, area, height + width)
    bias = torch.cat((rel_h, rel_w), dim=-1).reshape(batch, heads, area, height + width)
    scores = torch.cat((query * module.scale, bias), dim=-1) @ torch.cat((key, places), dim=-1).transpose(-1, -2)
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, height, width, -1)
    return module.proj(mixed), None


ALL_EXPERTS_FUNCTIONS.register("dense", dense_experts)
ALL_ATTENTION_FUNCTIONS.register("plain", plain_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register("plain", lambda *args, **kwargs: None)


def build_model(spec: TinySpec, seed: int = 0) -> UnlimitedOcrForConditionalGeneration:
    """Return a freshly initialised float32 model with the library's own attention and experts."""
    torch.manual_seed(seed)
    model: UnlimitedOcrForConditionalGeneration = UnlimitedOcrForConditionalGeneration._from_config(
        build_config(spec), attn_implementation="eager"
    )
    with torch.no_grad():
        model.model.vision_tower.sam_encoder.pos_embed.normal_(std=0.02)
    return model


def cast_weights(
    model: UnlimitedOcrForConditionalGeneration, dtype: torch.dtype
) -> UnlimitedOcrForConditionalGeneration:
    """Cast the weights in place, but not the rotary frequencies: rounded, they turn position 500 by a whole circle."""
    rotary = model.model.language_model.rotary_emb
    frequencies = rotary.inv_freq.clone()
    nn.Module.to(model, dtype)  # transformers' own `to` has no usable types
    rotary.inv_freq = frequencies.to(model.device)
    return model


def use_training_kernels(model: UnlimitedOcrForConditionalGeneration, attention: str = "plain") -> None:
    """Swap attention and experts for faster equivalents, in place; "sdpa" is PyTorch's own attention."""
    model.set_attn_implementation({"vision_config": {"encoder_config": attention}, "text_config": attention})
    model.set_experts_implementation("dense")
    for layer in model.model.vision_tower.sam_encoder.layers:
        layer.attn.forward = MethodType(folded_sam_attention, layer.attn)
