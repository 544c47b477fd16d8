"""The decoder graph of every family, declared once: what differs between models is a frozen ``DecoderSpec``.

The KV cache is an input and an output of the same shape; the runtime binds both to the same memory, and
GroupQueryAttention then writes the new keys and values in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder, nn

from .layers import FLOAT, INT32, INT64, MICROSOFT, GatedMlp, Linear, Precision, RmsNorm, Table, new_graph
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


@dataclass(frozen=True)
class StepInputs:
    """Graph inputs that every layer needs."""

    seqlens_k: ir.Value  # [B] int32: tokens in the cache after this step, less one
    total_length: ir.Value  # int32 scalar: the largest of those, plus one
    cos: ir.Value  # [max_length, head_dim / 2]
    sin: ir.Value


class Attention(nn.Module):
    """Causal self-attention with rotary positions (rotate-half) and the KV cache in place.

    hidden ─ qkv_proj ─ GroupQueryAttention ─ o_proj
                         │   ▲
             present.N ◄─┘   └─ past_key_values.N
    """

    def __init__(self, at: str, spec: DecoderSpec, precision: Precision) -> None:
        super().__init__()
        self.spec = spec
        outputs = [heads * spec.head_dim for heads in (spec.heads, spec.kv_heads, spec.kv_heads)]
        self.qkv_proj = Linear([f"{at}.{n}_proj" for n in "qkv"], spec.hidden, outputs, precision, bias=False)
        self.o_proj = Linear(f"{at}.o_proj", spec.heads * spec.head_dim, spec.hidden, precision, bias=False)

    def forward(
        self, op: OpBuilder, x: ir.Value, past: tuple[ir.Value, ir.Value], step: StepInputs
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        attended, key, value = op.GroupQueryAttention(
            self.qkv_proj(op, x), None, None, *past, step.seqlens_k, step.total_length, step.cos, step.sin,
            num_heads=self.spec.heads, kv_num_heads=self.spec.kv_heads, do_rotary=1, rotary_interleaved=0,
            _domain=MICROSOFT, _outputs=3,
        )  # fmt: skip
        return self.o_proj(op, attended), key, value


class Experts(nn.Module):
    """Routed experts in one MoE node, plus the shared ones.

    CPU: the kernel takes the logits, applies softmax over all experts, takes the top k and, with
    ``normalize_routing_weights=0``, keeps their weights as they are (seen: 4e-7 from a NumPy reference).
    CUDA: the same attributes; the kernel wants the logits in its own type. The gate itself is float32 on both.

    The CPU kernel (1.31.1) says that it may write over its input, and then reads what it wrote: as the last reader of
    its input it gives wrong sums. So something that depends on its output has to read the input once more; ``Where``
    with a condition that is never true does, at the price of one pass over [tokens, hidden].
    """

    def __init__(self, at: str, spec: DecoderSpec, precision: Precision) -> None:
        super().__init__()
        assert spec.moe is not None
        self.moe, self.precision = spec.moe, precision
        moe, hidden = spec.moe, spec.hidden
        self.gate = Linear(f"{at}.gate", hidden, moe.experts, Precision(FLOAT, FLOAT), bias=False)
        self.gate_up = Weight(
            [moe.experts, 2 * moe.width, hidden],
            expert_gate_up(f"{at}.experts", moe.experts, moe.width, hidden),
            precision.storage,
        )
        self.down = Weight(
            [moe.experts, hidden, moe.width],
            expert_down(f"{at}.experts", moe.experts, moe.width, hidden),
            precision.storage,
        )
        self.shared_experts = (
            GatedMlp(f"{at}.shared_experts", hidden, moe.shared_width, precision) if moe.shared_width else None
        )

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        compute = self.precision.compute
        logits = self.gate(op, x if compute == FLOAT else op.Cast(x, to=FLOAT))  # [B, S, experts]
        logits = op.Reshape(logits, [-1, self.moe.experts])
        routed = op.MoE(
            x, logits if compute == FLOAT else op.Cast(logits, to=compute), self.precision.use(op, self.gate_up), None,
            self.precision.use(op, self.down), k=self.moe.top_k,
            normalize_routing_weights=int(self.moe.renormalize),
            activation_type="swiglu", swiglu_fusion=1, activation_alpha=1.0, activation_beta=0.0, _domain=MICROSOFT,
        )  # fmt: skip
        routed = op.Where(False, x, routed)
        if self.moe.scale != 1.0:
            routed = op.Mul(routed, op.CastLike(self.moe.scale, routed))
        return routed if self.shared_experts is None else op.Add(routed, self.shared_experts(op, x))


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
        cos, sin = rope_tables(spec)
        self.rope_cos = Weight(cos.shape, computed(cos), precision.compute)
        self.rope_sin = Weight(sin.shape, computed(sin), precision.compute)

    def forward(
        self, op: OpBuilder, embeddings: ir.Value, pasts: list[tuple[ir.Value, ir.Value]], seqlens: ir.Value,
        total: ir.Value,
    ) -> tuple[ir.Value, list[tuple[ir.Value, ir.Value]]]:  # fmt: skip
        """embeddings [B, S, hidden] -> (hidden state of the last position [B, 1, hidden], present keys and values)."""
        step = StepInputs(seqlens, total, self.rope_cos, self.rope_sin)
        x, residual = embeddings, None
        presents = []
        for layer, past in zip(self.layers, pasts, strict=True):
            x, residual, key, value = layer(op, x, residual, past, step)
            presents.append((key, value))
        # Only the last position is read: logits of a whole prompt would be 470 MB at 130,000 words.
        x, residual = (op.Slice(branch, [-1], [2**31 - 1], [1]) for branch in (x, residual))
        return self.norm(op, x, residual)[0], presents


class Decoder(nn.Module):
    """The decoder with its head: embeddings in, logits of the last position out."""

    def __init__(self, at: str, head: str, spec: DecoderSpec, precision: Precision) -> None:
        super().__init__()
        self.spec, self.precision = spec, precision
        self.model = DecoderModel(at, spec, precision)
        self.lm_head = Linear(head, spec.hidden, spec.vocabulary, precision, bias=False)

    def forward(
        self, op: OpBuilder, embeddings: ir.Value, pasts: list[tuple[ir.Value, ir.Value]], seqlens: ir.Value,
        total: ir.Value,
    ) -> tuple[ir.Value, list[tuple[ir.Value, ir.Value]]]:  # fmt: skip
        x, presents = self.model(op, embeddings, pasts, seqlens, total)
        logits = op.Reshape(self.lm_head(op, x), [-1, self.spec.vocabulary])
        return (logits if self.precision.compute == FLOAT else op.Cast(logits, to=FLOAT)), presents


class Embedding(nn.Module):
    """Token ids [B, S] -> embeddings [B, S, hidden] in the decoder's compute type."""

    def __init__(self, name: str, spec: DecoderSpec, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        shape = (spec.vocabulary, spec.hidden)
        self.embed_tokens = Table(shape, copied(name, shape), Precision(precision.storage, precision.storage))

    def forward(self, op: OpBuilder, token_ids: ir.Value) -> ir.Value:
        rows = op.Gather(self.embed_tokens(op), token_ids, axis=0)
        return rows if self.precision.storage == self.precision.compute else op.Cast(rows, to=self.precision.compute)


def decoder_graph(decoder: Decoder) -> ir.Graph:
    """Declare decoder.onnx: embeddings, cache, lengths -> logits, cache."""
    spec, compute = decoder.spec, decoder.precision.compute
    builder = new_graph("decoder")
    embeddings = builder.input("inputs_embeds", compute, ["batch", "sequence", spec.hidden])
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
    logits, presents = decoder(builder.op, embeddings, pasts, seqlens, total)
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
    hidden = embedding.embed_tokens.weight.sizes[1]
    _add_output(builder.graph, rows, "inputs_embeds", embedding.precision.compute, ["batch", "sequence", hidden])
    return builder.graph


def _add_output(graph: ir.Graph, value: ir.Value, name: str, dtype: ir.DataType, shape: list[str | int]) -> None:
    value.name = name
    value.type = ir.TensorType(dtype)
    value.shape = ir.Shape(shape)
    graph.outputs.append(value)


def rope_tables(spec: DecoderSpec) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of position * theta^(-2i / head_dim), [max_length, head_dim / 2] each (RoFormer, arXiv 2104.09864).

    Computed in float32 step by step like transformers, so that both round alike.
    """
    powers = np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
    frequencies = (1.0 / np.power(np.float32(spec.rope_theta), powers)).astype(np.float32)
    angles = np.arange(spec.max_length, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)
