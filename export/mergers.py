"""The last step of ``export.rms_vision``'s towers: from a block of patches to one feature for the decoder.

All first gather the patches of a block, in the order that the host gives, and differ in the rest:

    GatedMerger     convolution over the block ─ Linear ─ LayerNorm ─ GELU ─ gated MLP          GLM-OCR
    MlpMerger       LayerNorm of each patch ─ block ─ Linear ─ GELU ─ Linear                    dots.ocr
    LinearMerger    block ─ Linear ─ Linear ─ GELU ─ Linear                                     LightOnOCR
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder, nn

from .layers import GatedMlp, LayerNorm, Precision, linear
from .weights import read_otherwise


@dataclass(frozen=True)
class MergerSpec:
    """Sizes of a merger."""

    width: int  # channels of a patch
    merge: int  # patches a side that one feature covers
    hidden: int  # the decoder's width
    epsilon: float = 1e-5  # epsilon of the merger's LayerNorm, if any

    @property
    def block(self) -> int:
        """Channels of a whole block."""
        return self.width * self.merge**2


class Merger(nn.Module):
    """Normalised patches [1, S, C] -> features [tokens, hidden]."""

    def __init__(self, spec: MergerSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, op: OpBuilder, x: ir.Value, blocks: ir.Value) -> ir.Value:
        """blocks : the patches of each feature, [tokens * merge²]"""
        raise NotImplementedError

    def gathered(self, op: OpBuilder, x: ir.Value, blocks: ir.Value, *, channels_first: bool) -> ir.Value:
        """[tokens, block], a block's patches row by row; or channel by channel, the patches within."""
        spec = self.spec
        patches = op.Gather(op.Reshape(x, [-1, spec.width]), blocks, axis=0)
        if channels_first:
            split = op.Reshape(patches, [-1, spec.merge**2, spec.width])
            patches = op.Transpose(split, perm=[0, 2, 1])
        return op.Reshape(patches, [-1, spec.block])


class GatedMerger(Merger):
    """GLM-OCR's: a strided convolution, then an MLP of its own."""

    def __init__(self, downsample: str, at: str, spec: MergerSpec, mlp_width: int, precision: Precision) -> None:
        super().__init__(spec)
        hidden = spec.hidden
        self.downsample = linear(downsample, spec.block, hidden, precision, bias=True, normed=True)
        # A convolution whose kernel covers a block is a product with that block.
        shapes = {f"{downsample}.weight": (hidden, spec.width, spec.merge, spec.merge)}
        read_otherwise(self.downsample, lambda name, tensor: tensor.reshape(hidden, -1), shapes)
        self.proj = linear(f"{at}.proj", hidden, hidden, precision)
        self.norm = LayerNorm(f"{at}.post_projection_norm", hidden, spec.epsilon, precision)
        self.mlp = GatedMlp(at, hidden, mlp_width, precision)

    def forward(self, op: OpBuilder, x: ir.Value, blocks: ir.Value) -> ir.Value:
        x = self.downsample(op, self.gathered(op, x, blocks, channels_first=True))
        return self.mlp(op, op.Gelu(self.norm(op, self.proj(op, x))))


class MlpMerger(Merger):
    """dots.ocr's: the layers are numbered as in a Sequential with the activation between them."""

    def __init__(self, at: str, spec: MergerSpec, precision: Precision) -> None:
        super().__init__(spec)
        self.norm = LayerNorm(f"{at}.ln_q", spec.width, spec.epsilon, precision)
        self.linear_1 = linear(f"{at}.mlp.0", spec.block, spec.block, precision, bias=True, normed=True)
        self.linear_2 = linear(f"{at}.mlp.2", spec.block, spec.hidden, precision, bias=True)

    def forward(self, op: OpBuilder, x: ir.Value, blocks: ir.Value) -> ir.Value:
        x = self.gathered(op, self.norm(op, x), blocks, channels_first=False)
        return self.linear_2(op, op.Gelu(self.linear_1(op, x)))


class LinearMerger(Merger):
    """LightOnOCR's."""

    def __init__(self, at: str, spec: MergerSpec, precision: Precision) -> None:
        super().__init__(spec)
        self.merging = linear(f"{at}.patch_merger.merging_layer", spec.block, spec.width, precision, normed=True)
        self.linear_1 = linear(f"{at}.linear_1", spec.width, spec.hidden, precision)
        self.linear_2 = linear(f"{at}.linear_2", spec.hidden, spec.hidden, precision)

    def forward(self, op: OpBuilder, x: ir.Value, blocks: ir.Value) -> ir.Value:
        x = self.merging(op, self.gathered(op, x, blocks, channels_first=True))
        return self.linear_2(op, op.Gelu(self.linear_1(op, x)))
