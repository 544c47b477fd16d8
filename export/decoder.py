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
from .errors import ExportError
from .layers import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    INT32,
    INT64,
    MICROSOFT,
    UINT8,
    GatedMlp,
    Precision,
    RmsNorm,
    linear,
    new_graph,
)  # fmt: skip
from .quantize import quantized
from .weights import Weight, computed, copied, expert_down, expert_gate_up


@dataclass(frozen=True)
class MoeSpec:
    """Mixture of experts in the layers after the dense ones. Routing: softmax over all experts, greedy top k."""

    experts: int
    top_k: int
    width: int  # of one expert
    shared_width: int  # of the shared experts, which run as one MLP; 0: none
    renormalize: bool  # divide the chosen weights by their sum
    scale: float  # factor on the routed experts' output


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes and rules of one decoder."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int  # of the dense layers
    dense_layers: int  # this many first layers are dense; the others are mixtures of experts
    moe: MoeSpec | None
    vocabulary: int
    max_length: int  # positions, prompt and answer together
    rope_theta: float
    rms_epsilon: float
    # Channel pairs that each axis of a position turns. None: the graph counts tokens and holds the angles.
    rotary_sections: tuple[int, ...] | None = None
    qkv_bias: bool = False  # of the three input projections of attention
    qk_norm: bool = False  # RMS norm of each head's queries and keys before they are turned
    post_norms: bool = False  # a norm behind each branch, too, before it is added
    tied_head: bool = False  # the head is the embedding table
    window: int | None = None  # a token of the answer sees the prompt and this many of the answer, itself among them

    def __post_init__(self) -> None:
        """Refuse what no module here computes yet.

        Raises
        ------
        ExportError
            naming the rule.
        """
        for name in ("qk_norm", "post_norms"):
            if getattr(self, name):
                raise ExportError(f"the model's decoder has {name}, which this exporter does not build yet")
        if self.window is not None and self.rotary_sections is None:
            raise ExportError("a window needs positions from the host (rotary_sections): tokens leave the cache")


@dataclass(frozen=True)
class Rotary:
    """How far the keys and queries of a step are turned.

    A token's angles stand in a row of a table: that of its number in the cache, or the one that is given. So a prompt
    with positions of its own brings a table with a row for each token, and a decode step, whose positions are plain
    again, a table by position with the number of a row; the graph is the same.
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

    GroupQueryAttention turns keys and queries by their number in the cache. It has an input for other positions, too:
    the CPU's kernel heeds it, and CUDA's, by its source, heeds it in the first chunk of a prompt only (FlashDecoding in
    group_query_attention_impl.cu does not look at it). RotaryEmbedding takes positions on both:

    qkv_proj ─ Split ─┬─ RotaryEmbedding (queries) ─┬─ GroupQueryAttention
                      ├─ RotaryEmbedding (keys) ────┤
                      └─ values ────────────────────┘

    On CUDA that kernel has no float32; there, attention in that type is written out (``export.attention``).
    """

    def __init__(self, at: str, spec: DecoderSpec, precision: Precision) -> None:
        super().__init__()
        self.spec = spec
        self.written_out = precision.provider == "cuda" and precision.compute == FLOAT
        self.widths = [heads * spec.head_dim for heads in (spec.heads, spec.kv_heads, spec.kv_heads)]
        packed = [f"{at}.{n}_proj" for n in "qkv"]
        self.qkv_proj = linear(packed, spec.hidden, self.widths, precision, bias=spec.qkv_bias)
        self.o_proj = linear(f"{at}.o_proj", spec.heads * spec.head_dim, spec.hidden, precision)

    def forward(
        self, op: OpBuilder, x: ir.Value, past: tuple[ir.Value, ir.Value], step: StepInputs
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        rotary, spec = step.rotary, self.spec
        packed = self.qkv_proj(op, x)
        if self.written_out:
            numbers = numbers_in_cache(op, x, step.seqlens_k)
            turned = self._turned(op, packed, replace(rotary, rows=numbers if rotary.rows is None else rotary.rows))
            attended, key, value = attention(op, turned, past, numbers, heads=spec.heads, kv_heads=spec.kv_heads)
            return self.o_proj(op, attended), key, value
        counted = rotary.rows is None
        states: Sequence[ir.Value | None] = [packed, None, None] if counted else self._turned(op, packed, rotary)
        attended, key, value = op.GroupQueryAttention(
            *states, *past, step.seqlens_k, step.total_length, *((rotary.cos, rotary.sin) if counted else ()),
            num_heads=spec.heads, kv_num_heads=spec.kv_heads, do_rotary=int(counted), rotary_interleaved=0,
            _domain=MICROSOFT, _outputs=3,
        )  # fmt: skip
        return self.o_proj(op, attended), key, value

    def _turned(self, op: OpBuilder, packed: ir.Value, rotary: Rotary) -> list[ir.Value]:
        """Queries and keys, turned to the rows that are given, and values; [B, S, heads * head_dim] each."""
        query, key, values = op.Split(packed, self.widths, axis=-1, _outputs=3)
        query, key = (
            op.RotaryEmbedding(one, rotary.rows, rotary.cos, rotary.sin, num_heads=heads, _domain=MICROSOFT)
            for one, heads in ((query, self.spec.heads), (key, self.spec.kv_heads))
        )
        return [query, key, values]


class Experts(nn.Module):
    """Routed experts in one node, plus the shared ones as one MLP.

    The gate is float32 on every provider. The kernels apply softmax over all experts to its logits and take the top k,
    and with ``normalize_routing_weights=0`` keep their weights as they are.

    The CPU's MoE kernel (1.31.1) says that it may write over its input, and then reads what it wrote: as the last
    reader of its input it gives wrong sums. So something that depends on its output has to read the input once more;
    ``Where`` with a condition that is never true does, at the price of one pass over [tokens, hidden].
    """

    def __init__(self, at: str, spec: DecoderSpec, precision: Precision) -> None:
        super().__init__()
        assert spec.moe is not None
        self.moe, self.precision = spec.moe, precision
        self.gate = linear(f"{at}.gate", spec.hidden, spec.moe.experts, Precision(FLOAT, FLOAT))
        kind = FloatExperts if precision.blocks is None else QuantizedExperts
        self.experts = kind(f"{at}.experts", spec.hidden, spec.moe, precision)
        self.shared_experts = (
            GatedMlp(f"{at}.shared_experts", spec.hidden, spec.moe.shared_width, precision)
            if spec.moe.shared_width
            else None
        )

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        logits = self.gate(op, x if self.precision.compute == FLOAT else op.Cast(x, to=FLOAT))  # [B, S, experts]
        routed = self.experts(op, x, op.Reshape(logits, [-1, self.moe.experts]))
        routed = op.Where(False, x, routed)
        if self.moe.scale != 1.0:
            routed = op.Mul(routed, op.CastLike(self.moe.scale, routed))
        return routed if self.shared_experts is None else op.Add(routed, self.shared_experts(op, x))


# How the kernels read the first matrix (gate and up rows interleaved) and what they compute: silu(gate) * up.
_SWIGLU = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}


class FloatExperts(nn.Module):
    """MoE with float weights; within 4e-7 of a NumPy reference on the CPU."""

    def __init__(self, at: str, hidden: int, moe: MoeSpec, precision: Precision) -> None:
        super().__init__()
        self.moe, self.precision = moe, precision
        gate_up = expert_gate_up(at, moe.experts, moe.width, hidden)
        down = expert_down(at, moe.experts, moe.width, hidden)
        self.gate_up = Weight([moe.experts, 2 * moe.width, hidden], gate_up, precision.storage)
        self.down = Weight([moe.experts, hidden, moe.width], down, precision.storage)

    def forward(self, op: OpBuilder, x: ir.Value, logits: ir.Value) -> ir.Value:
        """x [B, S, hidden], logits [B * S, experts] float32 -> [B, S, hidden]"""
        use = self.precision.use
        return op.MoE(
            x, self._rounded(op, logits), use(op, self.gate_up), None,
            use(op, self.down), k=self.moe.top_k, normalize_routing_weights=int(self.moe.renormalize), **_SWIGLU,
            _domain=MICROSOFT,
        )  # fmt: skip

    def _rounded(self, op: OpBuilder, logits: ir.Value) -> ir.Value:
        """The router's logits in the kernel's type.

        bfloat16 has 8 bits: so the logits are moved first, which a softmax does not notice, to have the largest,
        those of the chosen experts, near 0, where its steps are small.
        """
        compute = self.precision.compute
        if compute == BFLOAT16:
            # Not ReduceMax: CUDA has no kernel for it from opset 20 on.
            logits = op.Sub(logits, op.TopK(logits, [1], axis=-1, _outputs=2)[0])
        return logits if compute == FLOAT else op.Cast(logits, to=compute)


class QuantizedExperts(nn.Module):
    """QMoE with 8- or 4-bit weights.

    The CPU kernel ignores ``normalize_routing_weights=0`` unless it is given the weights to use: so it gets the logits,
    by which it chooses, and their softmax, with which it weighs. CUDA's computes both from the logits, and takes the
    weights for packed already, its own way, unless ``weights_prepacked`` says that they are not.
    """

    def __init__(self, at: str, hidden: int, moe: MoeSpec, precision: Precision) -> None:
        super().__init__()
        assert precision.blocks is not None
        self.moe, self.precision = moe, precision
        self.blocks = precision.blocks.fitting(hidden, moe.width)
        row_bytes, count = self.blocks.row_bytes, self.blocks.count
        gate_up = expert_gate_up(at, moe.experts, moe.width, hidden)
        values, scales = quantized(gate_up, self.blocks, f"{at}.gate_up", precision.meter)
        self.gate_up = Weight([moe.experts, 2 * moe.width, row_bytes(hidden)], values, UINT8)
        self.gate_up_scales = Weight([moe.experts, 2 * moe.width, count(hidden)], scales, FLOAT16)
        down = expert_down(at, moe.experts, moe.width, hidden)
        values, scales = quantized(down, self.blocks, f"{at}.down", precision.meter)
        self.down = Weight([moe.experts, hidden, row_bytes(moe.width)], values, UINT8)
        self.down_scales = Weight([moe.experts, hidden, count(moe.width)], scales, FLOAT16)

    def forward(self, op: OpBuilder, x: ir.Value, logits: ir.Value) -> ir.Value:
        """x [B, S, hidden], logits [B * S, experts] float32 -> [B, S, hidden]"""
        use, compute = self.precision.use, self.precision.compute
        weights = op.Softmax(logits, axis=-1)
        if compute != FLOAT:
            logits, weights = op.Cast(logits, to=compute), op.Cast(weights, to=compute)
        absent: list[ir.Value | None] = [None] * 7  # second bias, third matrix, zero points
        return op.QMoE(
            x, logits, self.gate_up, use(op, self.gate_up_scales), None, self.down, use(op, self.down_scales), *absent,
            weights, k=self.moe.top_k, normalize_routing_weights=int(self.moe.renormalize),
            expert_weight_bits=self.blocks.bits, block_size=self.blocks.size, weights_prepacked=0, **_SWIGLU,
            _domain=MICROSOFT,
        )  # fmt: skip


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm that also adds the previous branch to the residual."""

    def __init__(self, at: str, index: int, spec: DecoderSpec, precision: Precision) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(f"{at}.input_layernorm", spec.hidden, spec.rms_epsilon, precision)
        self.self_attn = Attention(f"{at}.self_attn", spec, precision)
        self.post_attention_layernorm = RmsNorm(
            f"{at}.post_attention_layernorm", spec.hidden, spec.rms_epsilon, precision
        )
        dense = spec.moe is None or index < spec.dense_layers
        self.mlp = (
            GatedMlp(f"{at}.mlp", spec.hidden, spec.mlp_width, precision)
            if dense
            else Experts(f"{at}.mlp", spec, precision)
        )

    def forward(
        self, op: OpBuilder, x: ir.Value, residual: ir.Value | None, past: tuple[ir.Value, ir.Value], step: StepInputs
    ) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
        """Returns (output of the MLP branch, residual, present key, present value)."""
        normed, residual = self.input_layernorm(op, x, residual)
        attended, key, value = self.self_attn(op, normed, past, step)
        normed, residual = self.post_attention_layernorm(op, attended, residual)
        return self.mlp(op, normed), residual, key, value


class DecoderModel(nn.Module):
    """Layers between the token embeddings (another graph) and the last norm."""

    def __init__(self, at: str, spec: DecoderSpec, precision: Precision) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer(f"{at}.layers.{i}", i, spec, precision) for i in range(spec.layers)])
        self.norm = RmsNorm(f"{at}.norm", spec.hidden, spec.rms_epsilon, precision)
        self.scored = 1  # positions at the end whose hidden state is given
        self.precision = precision
        if spec.rotary_sections is None:
            cos, sin = rotary_tables(np.arange(spec.max_length)[None], [spec.head_dim // 2], spec.rope_theta)
            self.rope_cos = Weight(cos.shape, computed(cos), FLOAT)
            self.rope_sin = Weight(sin.shape, computed(sin), FLOAT)

    def forward(
        self, op: OpBuilder, embeddings: ir.Value, pasts: list[tuple[ir.Value, ir.Value]], seqlens: ir.Value,
        total: ir.Value, rotary: Rotary | None = None,
    ) -> tuple[ir.Value, list[tuple[ir.Value, ir.Value]]]:  # fmt: skip
        """embeddings [B, S, hidden] -> (hidden state of the last positions [B, 1, hidden], present keys and values)."""
        if rotary is None:
            rotary = Rotary(self.precision.use(op, self.rope_cos), self.precision.use(op, self.rope_sin))
        step = StepInputs(seqlens, total, rotary)
        x, residual = embeddings, None
        presents = []
        for layer, past in zip(self.layers, pasts, strict=True):
            x, residual, key, value = layer(op, x, residual, past, step)
            presents.append((key, value))
        # Only the last position is read: logits of a whole prompt would be 470 MB at 130,000 words.
        x, residual = (op.Slice(branch, [-self.scored], [2**31 - 1], [1]) for branch in (x, residual))
        return self.norm(op, x, residual)[0], presents


class Decoder(nn.Module):
    """The decoder with its head: embeddings in, logits of the last position out."""

    def __init__(self, at: str, head: str, spec: DecoderSpec, precision: Precision) -> None:
        """``head``: its path in the checkpoint, where it is not tied."""
        super().__init__()
        self.spec, self.precision = spec, precision
        self.model = DecoderModel(at, spec, precision)
        head = f"{at}.embed_tokens" if spec.tied_head else head
        self.lm_head = linear(head, spec.hidden, spec.vocabulary, precision)

    def forward(
        self, op: OpBuilder, embeddings: ir.Value, pasts: list[tuple[ir.Value, ir.Value]], seqlens: ir.Value,
        total: ir.Value, rotary: Rotary | None = None,
    ) -> tuple[ir.Value, list[tuple[ir.Value, ir.Value]]]:  # fmt: skip
        x, presents = self.model(op, embeddings, pasts, seqlens, total, rotary)
        logits = op.Reshape(self.lm_head(op, x), [-1, self.spec.vocabulary])
        return (logits if self.precision.compute == FLOAT else op.Cast(logits, to=FLOAT)), presents


class Embedding(nn.Module):
    """Token ids [B, S] -> embeddings [B, S, hidden] in the type that the decoder takes.

    A quantised model keeps this table in blocks as well, for its size: one row is read at a time, whatever that costs.
    """

    def __init__(self, name: str, spec: DecoderSpec, precision: Precision) -> None:
        super().__init__()
        self.precision, self.hidden = precision, spec.hidden
        shape = (spec.vocabulary, spec.hidden)
        self.blocks = None if precision.blocks is None else precision.blocks.fitting(spec.hidden)
        if self.blocks is None:
            self.embed_tokens = Weight(shape, copied(name, shape), precision.storage)
        else:
            values, scales = quantized(copied(name, shape), self.blocks, name, precision.meter)
            self.embed_tokens = Weight([spec.vocabulary, self.blocks.row_bytes(spec.hidden)], values, UINT8)
            self.embed_scales = Weight([spec.vocabulary, self.blocks.count(spec.hidden)], scales, FLOAT16)

    def forward(self, op: OpBuilder, token_ids: ir.Value) -> ir.Value:
        if self.blocks is None:
            rows = op.Gather(self.embed_tokens, token_ids, axis=0)
            border = self.precision.border
            return rows if self.precision.storage == border else op.Cast(rows, to=border)
        return op.GatherBlockQuantized(
            self.embed_tokens, token_ids, self.precision.use(op, self.embed_scales), gather_axis=0, quantize_axis=1,
            bits=self.blocks.bits, block_size=self.blocks.size, _domain=MICROSOFT,
        )  # fmt: skip


def decoder_graph(decoder: Decoder) -> ir.Graph:
    """Declare decoder.onnx: embeddings, cache, lengths (and angles, where the host knows them) -> logits, cache."""
    spec, compute, border = decoder.spec, decoder.precision.compute, decoder.precision.border
    builder = new_graph("decoder")
    op = builder.op

    def given(name: str, shape: list[str | int]) -> ir.Value:
        """A float input, in the type that the layers compute in."""
        value = builder.input(name, border, shape)
        return value if border == compute else op.Cast(value, to=compute)

    embeddings = given("inputs_embeds", ["batch", "sequence", spec.hidden])
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
            given("rotary_cos", angles),
            given("rotary_sin", angles),
            builder.input("rotary_rows", INT64, ["batch", "sequence"]),
        )
    logits, presents = decoder(op, embeddings, pasts, seqlens, total, rotary)
    _add_output(builder.graph, logits, "logits", FLOAT, ["batch", spec.vocabulary])
    for i, (key, value) in enumerate(presents):
        _add_output(builder.graph, key, f"present.{i}.key", compute, cache_shape)
        _add_output(builder.graph, value, f"present.{i}.value", compute, cache_shape)
    return builder.graph


def embedding_graph(embedding: Embedding) -> ir.Graph:
    """Declare embed.onnx: input_ids -> inputs_embeds."""
    builder = new_graph("embed")
    token_ids = builder.input("input_ids", INT64, ["batch", "sequence"])
    rows = embedding(builder.op, token_ids)
    shape: list[str | int] = ["batch", "sequence", embedding.hidden]
    _add_output(builder.graph, rows, "inputs_embeds", embedding.precision.border, shape)
    return builder.graph


def _add_output(graph: ir.Graph, value: ir.Value, name: str, dtype: ir.DataType, shape: list[str | int]) -> None:
    value.name = name
    value.type = ir.TensorType(dtype)
    value.shape = ir.Shape(shape)
    graph.outputs.append(value)
