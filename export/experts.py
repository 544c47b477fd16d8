"""A mixture of experts in place of a decoder layer's MLP: the routed experts in one node, the shared ones as an MLP."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder, nn

from .layers import BFLOAT16, FLOAT, FLOAT16, MICROSOFT, UINT8, GatedMlp, Precision, linear
from .quantize import quantized
from .weights import Weight, expert_down, expert_gate_up


@dataclass(frozen=True)
class MoeSpec:
    """Mixture of experts in the layers after the dense ones. Routing: softmax over all experts, greedy top k."""

    experts: int
    top_k: int
    width: int  # width of one expert
    shared_width: int  # width of the shared experts, which run as one MLP; 0: none
    renormalize: bool  # divide the chosen weights by their sum
    scale: float  # factor on the routed experts' output


class Experts(nn.Module):
    """Routed experts in one node, plus the shared ones as one MLP.

    The gate is float32 on every provider. The kernels apply softmax over all experts to its logits and take the top k,
    and with ``normalize_routing_weights=0`` keep their weights as they are.

    The CPU's MoE kernel (1.31.1) declares that it may overwrite its input, and then reads overwritten values: as the
    last reader of its input it gives wrong sums. So a node that depends on its output must read the input again: a
    ``Where`` with a condition that is never true, at the price of one pass over [tokens, hidden].
    """

    def __init__(self, at: str, hidden: int, moe: MoeSpec, precision: Precision) -> None:
        super().__init__()
        self.moe, self.precision = moe, precision
        self.gate = linear(f"{at}.gate", hidden, moe.experts, Precision(FLOAT, FLOAT))
        kind = FloatExperts if precision.blocks is None else QuantizedExperts
        self.experts = kind(f"{at}.experts", hidden, moe, precision)
        self.shared_experts = (
            GatedMlp(f"{at}.shared_experts", hidden, moe.shared_width, precision) if moe.shared_width else None
        )

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        logits = self.gate(op, x if self.precision.compute == FLOAT else op.Cast(x, to=FLOAT))  # [B, S, experts]
        routed = self.experts(op, x, op.Reshape(logits, [-1, self.moe.experts]))
        routed = op.Where(False, x, routed)
        if self.moe.scale != 1.0:
            routed = op.Mul(routed, op.CastLike(self.moe.scale, routed))
        return routed if self.shared_experts is None else op.Add(routed, self.shared_experts(op, x))


# The kernels' layout of the first matrix (gate and up rows interleaved), and activation: silu(gate) * up.
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

        bfloat16 has 8 bits: so the logits are first shifted, which does not change a softmax, to bring the largest (the
        chosen experts') near 0, where bfloat16's steps are small.
        """
        compute = self.precision.compute
        if compute == BFLOAT16:
            # Not ReduceMax: CUDA has no kernel for it from opset 20 on.
            logits = op.Sub(logits, op.TopK(logits, [1], axis=-1, _outputs=2)[0])
        return logits if compute == FLOAT else op.Cast(logits, to=compute)


class QuantizedExperts(nn.Module):
    """QMoE with 8- or 4-bit weights.

    The CPU kernel ignores ``normalize_routing_weights=0`` unless it is given routing weights: so it gets the logits, to
    choose experts, and their softmax, to weight them. CUDA's kernel computes both from the logits, and takes expert
    weights as packed in its own layout unless ``weights_prepacked`` is 0.
    """

    def __init__(self, at: str, hidden: int, moe: MoeSpec, precision: Precision) -> None:
        super().__init__()
        assert precision.blocks is not None
        self.moe, self.precision = moe, precision
        self.blocks = precision.blocks.fitting(hidden, moe.width)
        row_bytes, count = self.blocks.row_bytes, self.blocks.count
        gate_up = expert_gate_up(at, moe.experts, moe.width, hidden)
        recipe = quantized(gate_up, self.blocks, f"{at}.gate_up", precision.meter)
        self.gate_up = Weight([moe.experts, 2 * moe.width, row_bytes(hidden)], recipe, UINT8)
        self.gate_up_scales = Weight([moe.experts, 2 * moe.width, count(hidden)], recipe, FLOAT16, part=1)
        down = expert_down(at, moe.experts, moe.width, hidden)
        recipe = quantized(down, self.blocks, f"{at}.down", precision.meter)
        self.down = Weight([moe.experts, hidden, row_bytes(moe.width)], recipe, UINT8)
        self.down_scales = Weight([moe.experts, hidden, count(moe.width)], recipe, FLOAT16, part=1)

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
