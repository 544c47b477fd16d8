"""PaddleOCR-VL's vision tower: a SigLIP-style transformer over a page of any proportions, and the projector.

Declared rather than traced, so that one graph with one copy of the weights serves every page size, and an export never
holds the tower in memory. Tests compare with transformers' modules.

Inputs that depend on the page's size are small matrices from ``models.paddleocr_vl.positions``. Attention is over the
whole page, up to 14,400 patches: without a bias the attention kernel works in tiles, so the square of scores is never
in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder, nn

from .graph_ends import add_float_output, float_input, new_graph
from .layers import INT64, MICROSOFT, Conv, LayerNorm, Precision, Table, linear
from .weights import copied


@dataclass(frozen=True)
class SiglipSpec:
    """Sizes of the tower and its projector."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    patch: int
    grid: int  # side of the position table, patches
    merge: int  # patches a side that one feature covers
    hidden: int  # the decoder's width
    epsilon: float
    projector_epsilon: float = 1e-5  # published code

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class SiglipInputs:
    """Inputs from the host for a page of h x w patches."""

    position_rows: ir.Value  # [h, grid]: resamples the position table downwards
    position_columns: ir.Value  # [w, grid]: resamples the position table across
    rotary_cos: ir.Value  # [h * w, head_dim / 2]
    rotary_sin: ir.Value
    merge_shape: ir.Value | None = None  # (h / merge, merge, w / merge, merge, -1); for CUDA only


class SiglipEmbeddings(nn.Module):
    """pixels [1, 3, patch * h, patch * w] -> patches with their learned positions [1, h, w, C]."""

    def __init__(self, at: str, spec: SiglipSpec, precision: Precision) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embedding = Conv(
            f"{at}.patch_embedding", 3, spec.width, spec.patch, precision, stride=spec.patch, padding=0, bias=True
        )
        positions = (spec.grid**2, spec.width)
        self.position_embedding = Table(positions, copied(f"{at}.position_embedding.weight", positions), precision)

    def forward(self, op: OpBuilder, pixels: ir.Value, page: SiglipInputs) -> ir.Value:
        grid, width = self.spec.grid, self.spec.width
        patches = op.Transpose(self.patch_embedding(op, pixels), perm=[0, 2, 3, 1])
        table = op.Reshape(self.position_embedding(op), [grid, grid * width])
        down = op.Reshape(op.MatMul(page.position_rows, table), [-1, grid, width])  # [h, grid, C]
        return op.Add(patches, op.MatMul(page.position_columns, down))  # broadcast over the first axis: [h, w, C]


class SiglipAttention(nn.Module):
    """Self-attention over the page [1, S, C]; queries and keys are rotated by row and column."""

    def __init__(self, at: str, spec: SiglipSpec, precision: Precision) -> None:
        super().__init__()
        self.heads = spec.heads

        def projection(name: str, *, normed: bool) -> nn.Module:
            return linear(f"{at}.{name}_proj", spec.width, spec.width, precision, bias=True, normed=normed)

        self.q_proj = projection("q", normed=True)
        self.k_proj = projection("k", normed=True)
        self.v_proj = projection("v", normed=True)
        self.out_proj = projection("out", normed=False)

    def forward(self, op: OpBuilder, x: ir.Value, page: SiglipInputs, first: ir.Value) -> ir.Value:
        q, k = (
            op.RotaryEmbedding(
                projected, first, page.rotary_cos, page.rotary_sin, num_heads=self.heads, _domain=MICROSOFT
            )
            for projected in (self.q_proj(op, x), self.k_proj(op, x))
        )
        attended = op.MultiHeadAttention(q, k, self.v_proj(op, x), num_heads=self.heads, _domain=MICROSOFT)
        return self.out_proj(op, attended)


class SiglipLayer(nn.Module):
    """Pre-norm transformer layer; GELU by its tanh formula."""

    def __init__(self, at: str, spec: SiglipSpec, precision: Precision) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(f"{at}.layer_norm1", spec.width, spec.epsilon, precision)
        self.self_attn = SiglipAttention(f"{at}.self_attn", spec, precision)
        self.layer_norm2 = LayerNorm(f"{at}.layer_norm2", spec.width, spec.epsilon, precision)
        self.fc1 = linear(f"{at}.mlp.fc1", spec.width, spec.mlp_width, precision, bias=True, normed=True)
        self.fc2 = linear(f"{at}.mlp.fc2", spec.mlp_width, spec.width, precision, bias=True)

    def forward(self, op: OpBuilder, x: ir.Value, page: SiglipInputs, first: ir.Value) -> ir.Value:
        x = op.Add(x, self.self_attn(op, self.layer_norm1(op, x), page, first))
        inner = op.Gelu(self.fc1(op, self.layer_norm2(op, x)), approximate="tanh")
        return op.Add(x, self.fc2(op, inner))


class Projector(nn.Module):
    """Patches [1, h, w, C] -> features [h * w / merge², hidden]: each block of patches becomes one."""

    def __init__(self, at: str, spec: SiglipSpec, precision: Precision) -> None:
        super().__init__()
        self.spec = spec
        wide = spec.width * spec.merge**2
        self.pre_norm = LayerNorm(f"{at}.pre_norm", spec.width, spec.projector_epsilon, precision)
        self.linear_1 = linear(f"{at}.linear_1", wide, wide, precision, bias=True, normed=True)
        self.linear_2 = linear(f"{at}.linear_2", wide, spec.hidden, precision, bias=True)

    def forward(self, op: OpBuilder, x: ir.Value, blocks: ir.Value | None = None) -> ir.Value:
        """blocks : shape with a block's patches along axes 1 and 3, from the host; None: computed here."""
        merge, width = self.spec.merge, self.spec.width
        x = self.pre_norm(op, x)
        if blocks is None:
            side = [op.Div(op.Shape(x, start=axis, end=axis + 1), [merge]) for axis in (1, 2)]
            blocks = op.Concat(side[0], [merge], side[1], [merge, width], axis=0)
        x = op.Reshape(x, blocks)
        x = op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3, 4]), [-1, merge * merge * width])
        return self.linear_2(op, op.Gelu(self.linear_1(op, x)))


class SiglipTower(nn.Module):
    """pixels [1, 3, patch * h, patch * w] -> features [h * w / merge², hidden]."""

    def __init__(self, at: str, projector: str, spec: SiglipSpec, precision: Precision) -> None:
        super().__init__()
        self.spec, self.precision = spec, precision
        self.embeddings = SiglipEmbeddings(f"{at}.embeddings", spec, precision)
        self.layers = nn.ModuleList(
            [SiglipLayer(f"{at}.encoder.layers.{i}", spec, precision) for i in range(spec.layers)]
        )
        self.post_layernorm = LayerNorm(f"{at}.post_layernorm", spec.width, spec.epsilon, precision)
        self.projector = Projector(projector, spec, precision)

    def forward(self, op: OpBuilder, pixels: ir.Value, page: SiglipInputs) -> ir.Value:
        patches = self.embeddings(op, pixels, page)  # [1, h, w, C]
        x = op.Reshape(patches, [1, -1, self.spec.width])
        first = op.Constant(value_ints=[0])  # the tables of angles begin with the first patch
        for layer in self.layers:
            x = layer(op, x, page, first)
        x = self.post_layernorm(op, x)
        if page.merge_shape is not None:
            return self.projector(op, x, page.merge_shape)
        return self.projector(op, op.Reshape(x, op.Shape(patches)))


def tower_graph(tower: SiglipTower) -> ir.Graph:
    """Declare vision.onnx. All float inputs and outputs are float32; the graph casts to its type of computation."""
    spec, compute = tower.spec, tower.precision.compute
    builder = new_graph("vision")
    angles: list[str | int] = ["patches", spec.head_dim // 2]
    pixels = float_input(builder, "pixel_values", [1, 3, "height", "width"], compute)
    page = SiglipInputs(
        position_rows=float_input(builder, "position_rows", ["h", spec.grid], compute),
        position_columns=float_input(builder, "position_columns", ["w", spec.grid], compute),
        rotary_cos=float_input(builder, "rotary_cos", angles, compute),
        rotary_sin=float_input(builder, "rotary_sin", angles, compute),
        merge_shape=builder.input("merge_shape", INT64, [5]) if tower.precision.provider == "cuda" else None,
    )
    add_float_output(builder, tower(builder.op, pixels, page), "features", compute, ["tokens", spec.hidden])
    return builder.graph
