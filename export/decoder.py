"""The decoder graph of every family, declared once: what differs between models is a frozen ``DecoderSpec``.

The KV cache is an input and an output of the same shape; the runtime binds both to the same memory, and
GroupQueryAttention then writes the new keys and values in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder, nn

from models.rotary import rotary_tables

from .attention import attention, numbers_in_cache
from .experts import Experts, MoeSpec
from .export_errors import ExportError
from .graph_ends import add_output, float_input, new_graph
from .layers import (
    FLOAT,
    FLOAT16,
    INT32,
    INT64,
    MICROSOFT,
    UINT8,
    GatedMlp,
    HeadNorm,
    Precision,
    RmsNorm,
    linear,
)  # fmt: skip
from .quantize import quantized
from .weights import Weight, computed, copied, read_otherwise, reordered


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes and rules of one decoder."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int  # MLP width of the dense layers
    dense_layers: int  # this many first layers are dense; the others are mixtures of experts
    moe: MoeSpec | None
    vocabulary: int
    max_length: int  # most positions, prompt and answer together
    rope_theta: float
    rms_epsilon: float
    # Channel pairs for each axis of a position. None: the graph counts tokens and holds the angles.
    rotary_sections: tuple[int, ...] | None = None
    qkv_bias: bool = False  # biases of attention's three input projections
    qk_norm: bool = False  # RMS norm of each head's queries and keys before the rotary turn
    post_norms: bool = False  # another norm behind each branch, before the sum
    rotary_pairs: bool = False  # the checkpoint rotates channels in pairs (0, 1), (2, 3), ...
    fused_gate_up: bool = False  # the checkpoint has gate and up as one matrix
    tied_head: bool = False  # the head is the embedding table
    window: int | None = None  # answer tokens that each of them attends to, itself included

    def __post_init__(self) -> None:
        """Refuse rules that no module here computes.

        Raises
        ------
        ExportError
            naming the rule.
        """
        if self.window is not None and self.rotary_sections is None:
            raise ExportError("a window needs positions from the host (rotary_sections): tokens leave the cache")


@dataclass(frozen=True)
class Rotary:
    """Angles by which the keys and queries of a step are rotated.

    A token's angles are a row of a table, by the token's number in the cache or by a given row number. So a prompt with
    its own positions brings a table with a row for each token, and a decode step a table by position with row numbers;
    the graph is the same.
    """

    cos: ir.Value  # [at least total_length, head_dim / 2]
    sin: ir.Value
    rows: ir.Value | None = None  # [B, S] int64: the row of each token; None: its number in the cache


@dataclass(frozen=True)
class StepInputs:
    """Graph inputs that every layer needs."""

    seqlens_k: ir.Value  # [B] int32: tokens in the cache after this step, less one
    total_length: ir.Value  # int32 scalar: the largest of those, plus one
    rotary: Rotary


class Attention(nn.Module):
    """Causal self-attention with rotary positions (rotate-half) and the KV cache in place.

    hidden ─ qkv_proj ─ GroupQueryAttention ─ o_proj
                         │   ▲
             present.N ◄─┘   └─ past_key_values.N

    GroupQueryAttention turns keys and queries by their number in the cache. The operator's ``position_ids`` input gives
    other positions: the CPU's kernel heeds the input, and CUDA's, by its source, only in the first chunk of a prompt
    (FlashDecoding in group_query_attention_impl.cu ignores it). RotaryEmbedding takes positions on both:

    qkv_proj ─ Split ─┬─ RotaryEmbedding (queries) ─┬─ GroupQueryAttention
                      ├─ RotaryEmbedding (keys) ────┤
                      └─ values ────────────────────┘

    On CUDA that kernel has no float32; there, attention in that type is written out (``export.attention``).

    A model that turns channels in pairs (2i, 2i + 1) has the rows of its queries and keys in another order here, the
    first of all pairs before the second ones: then rotate-half is the same rotation, and scores do not change, since
    both sides of each product are in that order.
    """

    def __init__(self, at: str, spec: DecoderSpec, precision: Precision) -> None:
        super().__init__()
        self.spec = spec
        self.written_out = precision.provider == "cuda" and precision.compute == FLOAT
        self.widths = [heads * spec.head_dim for heads in (spec.heads, spec.kv_heads, spec.kv_heads)]
        packed = [f"{at}.{n}_proj" for n in "qkv"]
        self.qkv_proj = linear(packed, spec.hidden, self.widths, precision, bias=spec.qkv_bias)
        self.q_norm = self.k_norm = None
        if spec.qk_norm:
            self.q_norm = HeadNorm(f"{at}.q_norm", spec.heads, spec.head_dim, spec.rms_epsilon, precision)
            self.k_norm = HeadNorm(f"{at}.k_norm", spec.kv_heads, spec.head_dim, spec.rms_epsilon, precision)
        if spec.rotary_pairs:
            halves = np.arange(spec.head_dim).reshape(-1, 2).T.ravel()  # 0, 2, 4, ..., 1, 3, 5, ...
            read_otherwise(self, reordered((f"{at}.q_", f"{at}.k_"), halves))
        self.o_proj = linear(f"{at}.o_proj", spec.heads * spec.head_dim, spec.hidden, precision)

    def forward(
        self, op: OpBuilder, x: ir.Value, past: tuple[ir.Value, ir.Value], step: StepInputs
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        rotary, spec = step.rotary, self.spec
        packed = self.qkv_proj(op, x)
        if self.written_out:
            numbers = numbers_in_cache(op, x, step.seqlens_k)
            rotary = replace(rotary, rows=numbers if rotary.rows is None else rotary.rows)
            turned = self._turned(op, self._split(op, packed), rotary)
            attended, key, value = attention(op, turned, past, numbers, heads=spec.heads, kv_heads=spec.kv_heads)
            return self.o_proj(op, attended), key, value
        counted = rotary.rows is None
        states: Sequence[ir.Value | None] = [packed, None, None]
        if not counted:
            states = self._turned(op, self._split(op, packed), rotary)
        elif spec.qk_norm:
            states = self._split(op, packed)
        attended, key, value = op.GroupQueryAttention(
            *states, *past, step.seqlens_k, step.total_length, *((rotary.cos, rotary.sin) if counted else ()),
            num_heads=spec.heads, kv_num_heads=spec.kv_heads, do_rotary=int(counted), rotary_interleaved=0,
            _domain=MICROSOFT, _outputs=3,
        )  # fmt: skip
        return self.o_proj(op, attended), key, value

    def _split(self, op: OpBuilder, packed: ir.Value) -> list[ir.Value]:
        """Queries, keys (normalised where the model does) and values; [B, S, heads * head_dim] each."""
        query, key, values = op.Split(packed, self.widths, axis=-1, _outputs=3)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(op, query), self.k_norm(op, key)
        return [query, key, values]

    def _turned(self, op: OpBuilder, states: Sequence[ir.Value], rotary: Rotary) -> list[ir.Value]:
        """The states with queries and keys rotated by the given rows."""
        query, key, values = states
        query, key = (
            op.RotaryEmbedding(one, rotary.rows, rotary.cos, rotary.sin, num_heads=heads, _domain=MICROSOFT)
            for one, heads in ((query, self.spec.heads), (key, self.spec.kv_heads))
        )
        return [query, key, values]


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm that also adds the previous branch to the residual.

    With post norms, each branch is normalised once more before it is added. The checkpoint still calls the norm in
    front of the MLP ``post_attention_layernorm``.
    """

    def __init__(self, at: str, index: int, spec: DecoderSpec, precision: Precision) -> None:
        super().__init__()

        def norm(name: str) -> RmsNorm:
            return RmsNorm(f"{at}.{name}", spec.hidden, spec.rms_epsilon, precision)

        self.input_layernorm = norm("input_layernorm")
        self.self_attn = Attention(f"{at}.self_attn", spec, precision)
        self.post_attention_layernorm = norm("post_attention_layernorm")
        moe = None if index < spec.dense_layers else spec.moe
        self.mlp = (
            GatedMlp(f"{at}.mlp", spec.hidden, spec.mlp_width, precision, fused=spec.fused_gate_up)
            if moe is None
            else Experts(f"{at}.mlp", spec.hidden, moe, precision)
        )
        self.post_self_attn_layernorm = norm("post_self_attn_layernorm") if spec.post_norms else None
        self.post_mlp_layernorm = norm("post_mlp_layernorm") if spec.post_norms else None

    def forward(
        self, op: OpBuilder, x: ir.Value, residual: ir.Value | None, past: tuple[ir.Value, ir.Value], step: StepInputs
    ) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
        """Returns (output of the MLP branch, residual, present key, present value)."""
        normed, residual = self.input_layernorm(op, x, residual)
        attended, key, value = self.self_attn(op, normed, past, step)
        if self.post_self_attn_layernorm is not None:
            attended, _ = self.post_self_attn_layernorm(op, attended)
        normed, residual = self.post_attention_layernorm(op, attended, residual)
        output = self.mlp(op, normed)
        if self.post_mlp_layernorm is not None:
            output, _ = self.post_mlp_layernorm(op, output)
        return output, residual, key, value


class DecoderModel(nn.Module):
    """Layers between the token embeddings (another graph) and the last norm."""

    def __init__(self, at: str, spec: DecoderSpec, precision: Precision) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer(f"{at}.layers.{i}", i, spec, precision) for i in range(spec.layers)])
        self.norm = RmsNorm(f"{at}.norm", spec.hidden, spec.rms_epsilon, precision)
        self.precision = precision
        if spec.rotary_sections is None:
            cos, sin = rotary_tables(np.arange(spec.max_length)[None], [spec.head_dim // 2], spec.rope_theta)
            self.rope_cos = Weight(cos.shape, computed(cos), FLOAT)
            self.rope_sin = Weight(sin.shape, computed(sin), FLOAT)

    def forward(
        self, op: OpBuilder, embeddings: ir.Value, pasts: list[tuple[ir.Value, ir.Value]], seqlens: ir.Value,
        total: ir.Value, rotary: Rotary | None = None, *, scored: int = 1,
    ) -> tuple[ir.Value, list[tuple[ir.Value, ir.Value]]]:  # fmt: skip
        """embeddings [B, S, hidden] -> (hidden states of the last positions [B, scored, hidden], keys and values)."""
        if rotary is None:
            rotary = Rotary(self.precision.use(op, self.rope_cos), self.precision.use(op, self.rope_sin))
        step = StepInputs(seqlens, total, rotary)
        x, residual = embeddings, None
        presents = []
        for layer, past in zip(self.layers, pasts, strict=True):
            x, residual, key, value = layer(op, x, residual, past, step)
            presents.append((key, value))
        # Only the last positions are scored: logits of a whole prompt would take 470 MB at 130,000 tokens.
        x, residual = (op.Slice(branch, [-scored], [2**31 - 1], [1]) for branch in (x, residual))
        return self.norm(op, x, residual)[0], presents


class Decoder(nn.Module):
    """The decoder with its head: embeddings in, logits of the last position out."""

    def __init__(self, at: str, head: str, spec: DecoderSpec, precision: Precision) -> None:
        """``head``: the head's path in the checkpoint, where it is not tied."""
        super().__init__()
        self.spec, self.precision = spec, precision
        self.model = DecoderModel(at, spec, precision)
        head = f"{at}.embed_tokens" if spec.tied_head else head
        self.lm_head = linear(head, spec.hidden, spec.vocabulary, precision)

    def forward(
        self, op: OpBuilder, embeddings: ir.Value, pasts: list[tuple[ir.Value, ir.Value]], seqlens: ir.Value,
        total: ir.Value, rotary: Rotary | None = None, *, scored: int = 1,
    ) -> tuple[ir.Value, list[tuple[ir.Value, ir.Value]]]:  # fmt: skip
        """embeddings [B, S, hidden] -> (logits of the last positions [B * scored, vocabulary], keys and values)."""
        x, presents = self.model(op, embeddings, pasts, seqlens, total, rotary, scored=scored)
        logits = op.Reshape(self.lm_head(op, x), [-1, self.spec.vocabulary])
        return (logits if self.precision.compute == FLOAT else op.Cast(logits, to=FLOAT)), presents


class Embedding(nn.Module):
    """Token ids [B, S] -> embeddings [B, S, hidden] in the type that the decoder takes.

    A quantised model quantises this table, too, for its size: only one row is read for each token.
    """

    def __init__(self, name: str, spec: DecoderSpec, precision: Precision) -> None:
        super().__init__()
        self.precision, self.hidden = precision, spec.hidden
        shape = (spec.vocabulary, spec.hidden)
        self.blocks = None if precision.blocks is None else precision.blocks.fitting(spec.hidden)
        if self.blocks is None:
            self.embed_tokens = Weight(shape, copied(name, shape), precision.storage)
        else:
            recipe = quantized(copied(name, shape), self.blocks, name, precision.meter)
            self.embed_tokens = Weight([spec.vocabulary, self.blocks.row_bytes(spec.hidden)], recipe, UINT8)
            self.embed_scales = Weight([spec.vocabulary, self.blocks.count(spec.hidden)], recipe, FLOAT16, part=1)

    def forward(self, op: OpBuilder, token_ids: ir.Value) -> ir.Value:
        if self.blocks is None:
            rows = op.Gather(self.embed_tokens, token_ids, axis=0)
            border = self.precision.border
            return rows if self.precision.storage == border else op.Cast(rows, to=border)
        return op.GatherBlockQuantized(
            self.embed_tokens, token_ids, self.precision.use(op, self.embed_scales), gather_axis=0, quantize_axis=1,
            bits=self.blocks.bits, block_size=self.blocks.size, _domain=MICROSOFT,
        )  # fmt: skip


def decoder_graph(decoder: Decoder, *, scored: int = 1) -> ir.Graph:
    """Declare decoder.onnx: embeddings, cache, lengths (and angles from the host) -> logits, cache.

    scored : number of last positions to compute logits for.
    """
    spec, compute, border = decoder.spec, decoder.precision.compute, decoder.precision.border
    builder = new_graph("decoder")
    embeddings = float_input(builder, "inputs_embeds", ["batch", "sequence", spec.hidden], compute, border)
    seqlens = builder.input("seqlens_k", INT32, ["batch"])
    total = builder.input("total_length", INT32, [])
    cache_shape: list[str | int] = ["batch", spec.kv_heads, "max_length", spec.head_dim]
    pasts = [
        (
            builder.input(f"past_key_values.{i}.key", compute, cache_shape),
            builder.input(f"past_key_values.{i}.value", compute, cache_shape),
        )
        for i in range(spec.layers)
    ]
    rotary = None
    if spec.rotary_sections is not None:
        angles: list[str | int] = ["table", spec.head_dim // 2]
        rotary = Rotary(
            float_input(builder, "rotary_cos", angles, compute, border),
            float_input(builder, "rotary_sin", angles, compute, border),
            builder.input("rotary_rows", INT64, ["batch", "sequence"]),
        )
    logits, presents = decoder(builder.op, embeddings, pasts, seqlens, total, rotary, scored=scored)
    add_output(builder, logits, "logits", FLOAT, ["batch", spec.vocabulary])
    for i, (key, value) in enumerate(presents):
        add_output(builder, key, f"present.{i}.key", compute, cache_shape)
        add_output(builder, value, f"present.{i}.value", compute, cache_shape)
    return builder.graph


def embedding_graph(embedding: Embedding) -> ir.Graph:
    """Declare embed.onnx: input_ids -> inputs_embeds."""
    builder = new_graph("embed")
    token_ids = builder.input("input_ids", INT64, ["batch", "sequence"])
    rows = embedding(builder.op, token_ids)
    shape: list[str | int] = ["batch", "sequence", embedding.hidden]
    add_output(builder, rows, "inputs_embeds", embedding.precision.border, shape)
    return builder.graph
