"""The layers of all graphs, in the style of PyTorch modules.

``at`` arguments are paths in the checkpoint; module attributes give the names in the graph. Shapes are comments at the
end of lines: B batch, S sequence, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir
from onnxscript import OpBuilder, nn

from models.manifest import Provider

from .quantize import Blocks, ErrorMeter, channel_quantized, quantized
from .weights import Recipe, Weight, copied, joined, stacked, transposed

FLOAT, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
INT8, UINT8, INT32, INT64 = ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.INT64
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Precision:
    """How the weights are kept and what the graph computes in.

    storage : the type of all weights that are not quantised. blocks, channels : how the large matrices are quantised,
    if at all: in blocks, for decoders, which multiply few rows of activations at a time, or in 8 bits by channels, for
    the many rows of images.
    provider : which execution provider the graph is for, where the providers' kernels differ.

    The CPU provider has no float16 products worth using, so a float16 export has two graphs on one data file: one
    that computes in float16 for GPUs and one that widens the weights for the CPU (the session folds those casts).
    """

    storage: ir.DataType
    compute: ir.DataType
    blocks: Blocks | None = None
    channels: bool = False
    provider: Provider = "cpu"
    meter: ErrorMeter | None = field(default=None, compare=False)

    def use(self, op: OpBuilder, weight: Weight) -> ir.Value:
        """The weight as the graph computes with it."""
        return weight if weight.dtype == self.compute else op.Cast(weight, to=self.compute)

    @property
    def border(self) -> ir.DataType:
        """The type of embeddings and angles where they enter and leave a graph: NumPy has no bfloat16."""
        return FLOAT if self.compute == BFLOAT16 else self.compute


class Table(nn.Module):
    """One tensor and nothing else: embeddings, position tables, separators."""

    def __init__(self, shape: Sequence[int], recipe: Recipe, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.weight = Weight(shape, recipe, precision.storage)

    def forward(self, op: OpBuilder) -> ir.Value:
        return self.precision.use(op, self.weight)


class Linear(nn.Module):
    """y = x Wᵀ + b with W in a float type.

    The checkpoint keeps W as [out, in]; the graph keeps it transposed, as MatMul's right-hand side.
    """

    def __init__(
        self, at: Sequence[str], inputs: int, outputs: Sequence[int], precision: Precision, *, bias: bool
    ) -> None:
        super().__init__()
        self.precision = precision
        recipe = transposed([f"{path}.weight" for path in at], outputs, inputs)
        self.weight = Weight([inputs, sum(outputs)], recipe, precision.storage)
        self.bias = None
        if bias:
            self.bias = Weight([sum(outputs)], joined([f"{path}.bias" for path in at], outputs), precision.storage)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        y = op.MatMul(x, self.precision.use(op, self.weight))
        return y if self.bias is None else op.Add(y, self.precision.use(op, self.bias))


class QuantizedLinear(nn.Module):
    """y = x Wᵀ + b with W in blocks; with ``accuracy_level`` 4 the kernel quantises x on the way."""

    # int8 products on the CPU: about 0.7 % of error against exact ones, for two to three times the speed.
    ACCURACY_LEVEL = 4

    def __init__(
        self, at: Sequence[str], inputs: int, outputs: Sequence[int], precision: Precision, *, bias: bool
    ) -> None:
        super().__init__()
        assert precision.blocks is not None
        self.inputs, self.outputs = inputs, sum(outputs)
        self.precision, self.blocks = precision, precision.blocks.fitting(inputs)
        source = stacked([f"{path}.weight" for path in at], outputs, inputs)
        recipe = quantized(source, self.blocks, at[0], precision.meter)
        count = self.blocks.count(inputs)
        self.weight = Weight([self.outputs, count, self.blocks.row_bytes(inputs) // count], recipe, UINT8)
        self.scales = Weight([self.outputs, count], recipe, FLOAT16, part=1)
        self.bias = None
        if bias:
            self.bias = Weight([self.outputs], joined([f"{path}.bias" for path in at], outputs), precision.storage)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        y = op.MatMulNBits(
            x, self.weight, self.precision.use(op, self.scales), K=self.inputs, N=self.outputs, bits=self.blocks.bits,
            block_size=self.blocks.size, accuracy_level=self.ACCURACY_LEVEL, _domain=MICROSOFT,
        )  # fmt: skip
        return y if self.bias is None else op.Add(y, self.precision.use(op, self.bias))


class Int8Linear(nn.Module):
    """y = x Wᵀ + b with W and x in 8 bits: one scale per output channel, and one for the whole input.

    The fastest product of the CPU provider for the thousands of rows of an image: five times MatMul where the processor
    has AMX, three times with VNNI; MatMulNBits reaches a third of that. One scale serves all rows when the rows are of
    one size, as a LayerNorm leaves them (``normed``). Other inputs are first normed, and the product is scaled back:

        x ── RMS norm x importance ── DynamicQuantizeMatMul ── / (1 / RMS of x) ── + b

    Only the CPU provider has this operator. Elsewhere the weights are widened, once, when the session is made.
    """

    EPSILON = 1e-12  # small enough to change a row of zeros only
    INTEGER_ON: Provider = "cpu"

    def __init__(
        self, at: Sequence[str], inputs: int, outputs: Sequence[int], precision: Precision, *, bias: bool, normed: bool
    ) -> None:
        super().__init__()
        self.normed, self.precision = normed, precision
        source = stacked([f"{path}.weight" for path in at], outputs, inputs)
        recipe = channel_quantized(source, at[0], precision.meter)
        self.weight = Weight([inputs, sum(outputs)], recipe, INT8)
        self.scales = Weight([sum(outputs)], recipe, FLOAT, part=1)
        self.importance = Weight([inputs], recipe, FLOAT, part=2)
        self.bias = None
        if bias:
            self.bias = Weight([sum(outputs)], joined([f"{path}.bias" for path in at], outputs), precision.storage)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        bias = None if self.bias is None else self.precision.use(op, self.bias)
        if self.precision.provider != self.INTEGER_ON:
            return self._widened(op, x, bias)
        if self.normed:
            return self._product(op, op.Mul(x, self.importance), bias)
        even, reciprocal = op.SimplifiedLayerNormalization(
            x, self.importance, axis=-1, epsilon=self.EPSILON, stash_type=1, _outputs=2
        )
        y = op.Div(self._product(op, even, None), reciprocal)
        return y if bias is None else op.Add(y, bias)

    def _product(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        return op.DynamicQuantizeMatMul(x, self.weight, self.scales, None, bias, _domain=MICROSOFT)

    def _widened(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        weight = op.Mul(
            op.DequantizeLinear(self.weight, self.scales, axis=1), op.Unsqueeze(self.importance, [1])
        )  # [in, out]
        y = op.MatMul(x, op.Cast(weight, to=self.precision.compute))
        return y if bias is None else op.Add(y, bias)


def linear(
    at: str | Sequence[str], inputs: int, outputs: int | Sequence[int], precision: Precision, *, bias: bool = False,
    normed: bool = False,
) -> Linear | QuantizedLinear | Int8Linear:  # fmt: skip
    """A linear layer in the given precision. Several matrices of the checkpoint may stand side by side in one product.

    normed : the input comes from a LayerNorm, so that 8-bit products of images need not norm the input themselves.
    """
    paths = [at] if isinstance(at, str) else list(at)
    widths = [outputs] if isinstance(outputs, int) else list(outputs)
    if precision.channels:
        return Int8Linear(paths, inputs, widths, precision, bias=bias, normed=normed)
    kind = Linear if precision.blocks is None else QuantizedLinear
    return kind(paths, inputs, widths, precision, bias=bias)


class LayerNorm(nn.Module):
    """LayerNormalization over the last axis."""

    def __init__(self, at: str, width: int, epsilon: float, precision: Precision) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.precision = precision
        self.weight = Weight([width], copied(f"{at}.weight", (width,)), precision.storage)
        self.bias = Weight([width], copied(f"{at}.bias", (width,)), precision.storage)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        weight, bias = self.precision.use(op, self.weight), self.precision.use(op, self.bias)
        return op.LayerNormalization(x, weight, bias, axis=-1, epsilon=self.epsilon)


class RmsNorm(nn.Module):
    """RMS normalisation; where there is a residual, its addition is fused with the normalisation."""

    def __init__(self, at: str, width: int, epsilon: float, precision: Precision) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.precision = precision
        self.weight = Weight([width], copied(f"{at}.weight", (width,)), precision.storage)

    def forward(self, op: OpBuilder, x: ir.Value, residual: ir.Value | None = None) -> tuple[ir.Value, ir.Value]:
        """Returns (normalised, sum to carry on as the next residual)."""
        weight = self.precision.use(op, self.weight)
        if residual is None:
            return op.SimplifiedLayerNormalization(x, weight, axis=-1, epsilon=self.epsilon, stash_type=1), x
        normed, _, _, total = op.SkipSimplifiedLayerNormalization(
            x, residual, weight, epsilon=self.epsilon, _domain=MICROSOFT, _outputs=4
        )
        return normed, total


class HeadNorm(nn.Module):
    """RMS normalisation of each head's states, with weights that all heads share."""

    def __init__(self, at: str, heads: int, width: int, epsilon: float, precision: Precision) -> None:
        """``width``: of one head."""
        super().__init__()
        self.heads, self.epsilon, self.precision = heads, epsilon, precision
        self.weight = Weight([width], copied(f"{at}.weight", (width,)), precision.storage)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """[B, S, heads * width], normalised."""
        weight = self.precision.use(op, self.weight)
        states = op.Reshape(x, [0, 0, self.heads, -1])
        normed = op.SimplifiedLayerNormalization(states, weight, axis=-1, epsilon=self.epsilon, stash_type=1)
        return op.Reshape(normed, [0, 0, -1])


class Conv(nn.Module):
    """2-D convolution on [B, C, H, W] with square kernels; in float32 where the graph computes in bfloat16.

    ONNX has Conv in bfloat16 from opset 22 on only.
    """

    def __init__(
        self, at: str, inputs: int, outputs: int, kernel: int, precision: Precision, *, stride: int, padding: int,
        bias: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.precision = precision
        self.attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
        shape = (outputs, inputs, kernel, kernel)
        self.weight = Weight(shape, copied(f"{at}.weight", shape), precision.storage)
        self.bias = Weight([outputs], copied(f"{at}.bias", (outputs,)), precision.storage) if bias else None

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        wide = replace(self.precision, compute=self.precision.border)
        narrow = wide.compute != self.precision.compute
        inputs = [op.Cast(x, to=wide.compute) if narrow else x, wide.use(op, self.weight)]
        if self.bias is not None:
            inputs.append(wide.use(op, self.bias))
        y = op.Conv(*inputs, **self.attributes)
        return op.Cast(y, to=self.precision.compute) if narrow else y


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up as one product."""

    def __init__(
        self, at: str, hidden: int, width: int, precision: Precision, *, normed: bool = False, bias: bool = False,
        fused: bool = False, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:  # fmt: skip
        """``normed``: see ``linear``. ``fused``: the checkpoint has gate and up as one matrix, gate above up.

        names : of gate, up and down in the checkpoint.
        """
        super().__init__()
        gate, up, down = (f"{at}.{name}" for name in names)
        gate_up = {f"{at}.gate_up_proj": 2 * width} if fused else {gate: width, up: width}
        self.gate_up_proj = linear(list(gate_up), hidden, list(gate_up.values()), precision, bias=bias, normed=normed)
        self.down_proj = linear(down, width, hidden, precision, bias=bias)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        gate, up = op.Split(self.gate_up_proj(op, x), axis=-1, num_outputs=2, _outputs=2)
        silu = op.QuickGelu(gate, alpha=1.0, _domain=MICROSOFT)  # x * sigmoid(alpha x) in one kernel
        return self.down_proj(op, op.Mul(silu, up))
