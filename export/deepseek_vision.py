"""DeepSeek-OCR's vision tower: SAM with windows and global attention, CLIP on its map, and the projector.

Declared rather than traced, for three reasons that the profile of the traced graph gave (shared facts): one graph with
ONE copy of the weights serves every view size; the decomposed relative-position bias, a fifth of the traced graph's
time, becomes two small products and longer channels of an attention kernel; and weights bind by name, so an export
never holds the tower in memory. transformers' modules stay the reference that the tests compare with.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import GraphBuilder, OpBuilder, nn

from .graph_ends import float_input
from .layers import MICROSOFT, LayerNorm, Precision, Table, linear
from .sam_cuda import for_each
from .sam_vision import Sam, SamSpec, ViewInputs, resample, sam_graph
from .weights import Weight, copied


@dataclass(frozen=True)
class ClipSpec:
    """CLIP's transformer, which takes the SAM map in place of its own patch embeddings."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    grid: int  # side of the position table, patches
    epsilon: float = 1e-5


@dataclass(frozen=True)
class VisionSpec:
    sam: SamSpec
    clip: ClipSpec
    hidden: int  # the decoder's width


class ClipLayer(nn.Module):
    """Pre-norm transformer layer with quick GELU."""

    def __init__(self, at: str, spec: ClipSpec, precision: Precision) -> None:
        super().__init__()
        self.heads = spec.heads
        self.layer_norm1 = LayerNorm(f"{at}.layer_norm1", spec.width, spec.epsilon, precision)
        self.qkv_proj = linear(
            f"{at}.self_attn.qkv_proj", spec.width, 3 * spec.width, precision, bias=True, normed=True
        )
        self.out_proj = linear(f"{at}.self_attn.out_proj", spec.width, spec.width, precision, bias=True)
        self.layer_norm2 = LayerNorm(f"{at}.layer_norm2", spec.width, spec.epsilon, precision)
        self.fc1 = linear(f"{at}.mlp.fc1", spec.width, spec.mlp_width, precision, bias=True, normed=True)
        self.fc2 = linear(f"{at}.mlp.fc2", spec.mlp_width, spec.width, precision, bias=True)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        q, k, v = op.Split(self.qkv_proj(op, self.layer_norm1(op, x)), axis=-1, num_outputs=3, _outputs=3)
        attended = op.MultiHeadAttention(q, k, v, num_heads=self.heads, _domain=MICROSOFT)
        x = op.Add(x, self.out_proj(op, attended))
        inner = op.QuickGelu(self.fc1(op, self.layer_norm2(op, x)), alpha=1.702, _domain=MICROSOFT)
        return op.Add(x, self.fc2(op, inner))


class Clip(nn.Module):
    """SAM map [B, q * q, C] -> [B, q * q, C], the class token cut off again."""

    def __init__(self, at: str, spec: ClipSpec, precision: Precision) -> None:
        super().__init__()
        self.spec, self.precision = spec, precision
        self.class_embedding = Weight(
            [spec.width], copied(f"{at}.embeddings.class_embedding", (spec.width,)), precision.storage
        )
        positions = (spec.grid**2 + 1, spec.width)
        self.position_embedding = Table(
            positions, copied(f"{at}.embeddings.position_embedding.weight", positions), precision
        )
        self.pre_layrnorm = LayerNorm(f"{at}.pre_layrnorm", spec.width, spec.epsilon, precision)
        self.layers = nn.ModuleList(
            [ClipLayer(f"{at}.transformer.layers.{i}", spec, precision) for i in range(spec.layers)]
        )

    def forward(self, op: OpBuilder, patches: ir.Value, rows: ir.Value) -> ir.Value:
        """``rows`` [q, grid]: resamples the position table."""
        width = self.spec.width
        table = self.position_embedding(op)  # [1 + grid * grid, C], the class token's first
        first = op.Add(self.precision.use(op, self.class_embedding), op.Slice(table, [0], [1], [0]))  # [1, C]
        first = op.Reshape(first, [1, 1, width])
        if self.precision.provider == "cuda":
            first = for_each(op, first, op.Slice(patches, [0], [1], [1]))
        else:
            first = op.Expand(first, op.Concat(op.Shape(patches, start=0, end=1), [1, width], axis=0))
        others = resample(op, op.Slice(table, [1], [2**31 - 1], [0]), rows, self.spec.grid, width)
        patches = op.Add(patches, op.Reshape(others, [1, -1, width]))
        x = self.pre_layrnorm(op, op.Concat(first, patches, axis=1))
        for layer in self.layers:
            x = layer(op, x)
        return op.Slice(x, [1], [2**31 - 1], [1])


class SamClipTower(nn.Module):
    """pixels [B, 3, side, side] -> features [B, q * q, hidden], with the two separators of the image layout."""

    def __init__(self, at: str, spec: VisionSpec, precision: Precision) -> None:
        super().__init__()
        self.spec, self.precision = spec, precision
        self.sam_model = Sam(f"{at}.sam_model", spec.sam, precision)
        self.vision_model = Clip(f"{at}.vision_model", spec.clip, precision)
        width = spec.sam.channels[1] + spec.clip.width
        self.projector = linear(f"{at}.projector.layers", width, spec.hidden, precision, bias=True)
        self.newline = Weight([spec.hidden], copied(f"{at}.image_newline", (spec.hidden,)), precision.storage)
        self.separator = Weight([spec.hidden], copied(f"{at}.view_seperator", (spec.hidden,)), precision.storage)

    def forward(self, op: OpBuilder, pixels: ir.Value, view: ViewInputs, clip_rows: ir.Value) -> ir.Value:
        grid = op.Transpose(self.sam_model(op, pixels, view), perm=[0, 2, 3, 1])
        patches = op.Reshape(grid, [0, -1, self.spec.sam.channels[1]])
        return self.projector(op, op.Concat(self.vision_model(op, patches, clip_rows), patches, axis=-1))


def vision_graph(tower: SamClipTower) -> ir.Graph:
    """See ``sam_graph``."""
    spec, precision = tower.spec, tower.precision

    def rows(builder: GraphBuilder) -> tuple[ir.Value, ...]:
        return (float_input(builder, "clip_rows", ["q", spec.clip.grid], precision.compute),)

    separators = {"image_newline": tower.newline, "view_separator": tower.separator}
    return sam_graph(tower, spec.sam, precision, spec.hidden, rows, separators)
