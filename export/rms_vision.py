"""One vision tower for GLM-OCR, dots.ocr and LightOnOCR: RMSNorm, SwiGLU, 2-D rotary positions, one page a pass.

``TowerSpec`` has the layers' switches, ``TowerNames`` their names in the checkpoint, ``export.mergers`` the last step.
Declared rather than traced, so that one graph with one copy of the weights serves every page size. Tests compare with
transformers' modules.

The published code of two families reads patches block by block, the third's row by row. Attention is over the whole
page, so the order does not matter to the layers: here patches are in rows, as the convolution gives them, with each
patch's own angles, and ``blocks`` has the patches of each feature. Inputs that depend on the page's size come from the
host (``models.patches``). Without a bias the attention kernel works in tiles, so the square of scores is never in
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder, nn

from .graph_ends import add_float_output, float_input, new_graph
from .layers import INT64, MICROSOFT, Conv, GatedMlp, HeadNorm, Precision, RmsNorm, linear
from .mergers import Merger
from .outliers import OutlierSite
from .weights import summed_frames


@dataclass(frozen=True)
class TowerSpec:
    """Sizes and switches of the layers."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    patch: int  # pixels
    epsilon: float
    patch_bias: bool  # bias of the convolution that makes patches
    frames: int | None = None  # frames of the patch kernels, which all see the same still picture
    entry_norm: bool = False  # a norm before the first layer
    bias: bool = False  # biases of attention and MLP
    qk_norm: bool = False  # RMS norm of each head's queries and keys before the rotation
    exit_epsilon: float | None = None  # epsilon of the norm behind the last layer; None: the layers' epsilon

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class TowerNames:
    """Names of the parts in a checkpoint: first whole paths, then names within a layer."""

    patches: str
    entry_norm: str
    layers: str
    exit_norm: str
    norm1: str
    qkv: tuple[str, ...]  # one packed matrix or three
    proj: str
    norm2: str
    gate: str
    up: str
    down: str
    q_norm: str = "attn.q_norm"
    k_norm: str = "attn.k_norm"


@dataclass(frozen=True)
class PageInputs:
    """Inputs from the host for a page of h x w patches."""

    rotary_cos: ir.Value  # [h * w, head_dim / 2]
    rotary_sin: ir.Value
    blocks: ir.Value  # [tokens * patches of a token] int64: the patches of each feature, feature after feature


class TowerAttention(nn.Module):
    """Self-attention over the page [1, S, C]; queries and keys are rotated by row and column."""

    def __init__(self, at: str, names: TowerNames, spec: TowerSpec, precision: Precision) -> None:
        super().__init__()
        self.heads = spec.heads
        packed = [f"{at}.{name}" for name in names.qkv]
        widths = [3 * spec.width // len(packed)] * len(packed)
        self.qkv_proj = linear(packed, spec.width, widths, precision, bias=spec.bias, normed=True)
        self.q_norm = self.k_norm = None
        if spec.qk_norm:
            self.q_norm, self.k_norm = (
                HeadNorm(f"{at}.{name}", spec.heads, spec.head_dim, spec.epsilon, precision)
                for name in (names.q_norm, names.k_norm)
            )
        self.proj = linear(f"{at}.{names.proj}", spec.width, spec.width, precision, bias=spec.bias)

    def forward(self, op: OpBuilder, x: ir.Value, page: PageInputs, first: ir.Value) -> ir.Value:
        query, key, value = op.Split(self.qkv_proj(op, x), axis=-1, num_outputs=3, _outputs=3)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(op, query), self.k_norm(op, key)
        query, key = (
            op.RotaryEmbedding(one, first, page.rotary_cos, page.rotary_sin, num_heads=self.heads, _domain=MICROSOFT)
            for one in (query, key)
        )
        attended = op.MultiHeadAttention(query, key, value, num_heads=self.heads, _domain=MICROSOFT)
        return self.proj(op, attended)


class TowerLayer(nn.Module):
    """Attention and MLP, each behind a norm that also adds the branch before it."""

    def __init__(self, at: str, names: TowerNames, spec: TowerSpec, precision: Precision) -> None:
        super().__init__()
        self.norm1 = RmsNorm(f"{at}.{names.norm1}", spec.width, spec.epsilon, precision)
        self.attn = TowerAttention(at, names, spec, precision)
        self.norm2 = RmsNorm(f"{at}.{names.norm2}", spec.width, spec.epsilon, precision)
        self.mlp = GatedMlp(
            at, spec.width, spec.mlp_width, precision, normed=True, bias=spec.bias,
            names=(names.gate, names.up, names.down),
        )  # fmt: skip

    def forward(
        self, op: OpBuilder, x: ir.Value, residual: ir.Value | None, page: PageInputs, first: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Returns (output of the MLP branch, residual)."""
        normed, residual = self.norm1(op, x, residual)
        normed, residual = self.norm2(op, self.attn(op, normed, page, first), residual)
        return self.mlp(op, normed), residual


class Tower(nn.Module):
    """pixels [1, 3, patch * h, patch * w] -> features [tokens, hidden]."""

    def __init__(self, names: TowerNames, spec: TowerSpec, merger: Merger, precision: Precision) -> None:
        super().__init__()
        self.spec, self.precision = spec, precision
        self.patches = Conv(
            names.patches, 3, spec.width, spec.patch, precision, stride=spec.patch, padding=0, bias=spec.patch_bias
        )
        if spec.frames is not None:
            shape = (spec.width, 3, spec.frames, spec.patch, spec.patch)
            self.patches.weight.recipe = summed_frames(f"{names.patches}.weight", shape)
        self.entry_norm = RmsNorm(names.entry_norm, spec.width, spec.epsilon, precision) if spec.entry_norm else None
        self.layers = nn.ModuleList(
            [TowerLayer(f"{names.layers}.{i}", names, spec, precision) for i in range(spec.layers)]
        )
        exit_epsilon = spec.epsilon if spec.exit_epsilon is None else spec.exit_epsilon
        self.exit_norm = RmsNorm(names.exit_norm, spec.width, exit_epsilon, precision)
        self.merger = merger

    def forward(self, op: OpBuilder, pixels: ir.Value, page: PageInputs) -> ir.Value:
        spec = self.spec
        patches = op.Reshape(self.patches(op, pixels), [1, spec.width, -1])
        x, residual = op.Transpose(patches, perm=[0, 2, 1]), None  # [1, S, C]
        if self.entry_norm is not None:
            x = self.entry_norm(op, x)[0]
        first = op.Constant(value_ints=[0])  # the tables of angles begin with the first patch
        for layer in self.layers:
            x, residual = layer(op, x, residual, page, first)
        return self.merger(op, self.exit_norm(op, x, residual)[0], page.blocks)


def tower_graph(tower: Tower) -> ir.Graph:
    """Declare vision.onnx. All float inputs and outputs are float32; the graph casts to its type of computation."""
    spec, compute = tower.spec, tower.precision.compute
    builder = new_graph("vision")
    angles: list[str | int] = ["patches", spec.head_dim // 2]
    pixels = float_input(builder, "pixel_values", [1, 3, "height", "width"], compute)
    page = PageInputs(
        rotary_cos=float_input(builder, "rotary_cos", angles, compute),
        rotary_sin=float_input(builder, "rotary_sin", angles, compute),
        blocks=builder.input("blocks", INT64, ["merged"]),
    )
    features = tower(builder.op, pixels, page)
    add_float_output(builder, features, "features", compute, ["tokens", tower.merger.spec.hidden])
    return builder.graph


def tower_outliers(names: TowerNames, spec: TowerSpec) -> Iterator[OutlierSite]:
    """Sites where the report plants outlier channels: the inputs of each layer's matrices."""

    def parameters(path: str) -> tuple[str, ...]:
        return (f"{path}.weight", f"{path}.bias") if spec.bias else (f"{path}.weight",)

    for i in range(spec.layers):
        at = f"{names.layers}.{i}"
        qkv = [f"{at}.{name}" for name in names.qkv]
        values_from = 2 * spec.width if len(qkv) == 1 else 0
        mlp = tuple(f"{at}.{name}.weight" for name in (names.gate, names.up))
        yield OutlierSite((f"{at}.{names.norm1}.weight",), tuple(f"{one}.weight" for one in qkv), spec.width)
        yield OutlierSite(parameters(qkv[-1]), (f"{at}.{names.proj}.weight",), spec.width, values_from)
        yield OutlierSite((f"{at}.{names.norm2}.weight",), mlp, spec.width)
        yield OutlierSite(parameters(f"{at}.{names.up}"), (f"{at}.{names.down}.weight",), spec.mlp_width)
