"""DeepSeek-OCR-2's vision tower: SAM, then an encoder in which learned queries read SAM's map, and the projector.

The encoder's sequence is the map's tokens and, behind them, as many queries; only the queries' outputs are kept. A
token of the map attends to the whole map and no query, a query to the whole map and the queries up to itself. Two map
sizes have a set of queries each: one graph has both sets in one table, and the host gives the row numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder, OpBuilder, nn

from models.rotary import rotary_tables

from .graph_ends import float_input
from .layers import INT64, MICROSOFT, GatedMlp, Precision, RmsNorm, Table, linear
from .sam_cuda import for_each
from .sam_vision import Sam, SamSpec, ViewInputs, sam_graph
from .weights import Weight, computed, copied


@dataclass(frozen=True)
class QuerySpec:
    """The encoder: a Qwen2-like stack of grouped-query attention with biases of queries, keys and values."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    queries: tuple[tuple[str, int], ...]  # each set's tensor in the checkpoint and its rows, in the table's order
    rope_theta: float = 1e6
    epsilon: float = 1e-6


@dataclass(frozen=True)
class QueryTowerSpec:
    sam: SamSpec
    encoder: QuerySpec
    hidden: int  # the decoder's width


class QueryAttention(nn.Module):
    """Self-attention over map and queries; keys and values are repeated for the heads that share them."""

    def __init__(self, at: str, spec: QuerySpec, precision: Precision) -> None:
        super().__init__()
        self.spec = spec
        self.widths = [heads * spec.head_dim for heads in (spec.heads, spec.kv_heads, spec.kv_heads)]
        packed = [f"{at}.{n}_proj" for n in "qkv"]
        self.qkv_proj = linear(packed, spec.width, self.widths, precision, bias=True, normed=True)
        self.o_proj = linear(f"{at}.o_proj", spec.heads * spec.head_dim, spec.width, precision)

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value, rotary: tuple[ir.Value, ir.Value]) -> ir.Value:
        """x [B, 2 n, C], bias [1, 1, 2 n, 2 n] -> [B, 2 n, C]"""
        spec = self.spec
        query, key, value = op.Split(self.qkv_proj(op, x), self.widths, axis=-1, _outputs=3)
        query, key = (
            op.RotaryEmbedding(one, [0], *rotary, num_heads=heads, _domain=MICROSOFT)
            for one, heads in ((query, spec.heads), (key, spec.kv_heads))
        )
        attended = op.MultiHeadAttention(
            query, self._repeated(op, key), self._repeated(op, value), None, None, bias, num_heads=spec.heads,
            _domain=MICROSOFT,
        )  # fmt: skip
        return self.o_proj(op, attended)

    def _repeated(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """[B, S, kv heads * head_dim] -> [B, S, heads * head_dim]"""
        spec = self.spec
        if spec.heads == spec.kv_heads:
            return x
        split = op.Reshape(x, [0, 0, spec.kv_heads, 1, spec.head_dim])
        wide = op.Tile(split, [1, 1, 1, spec.heads // spec.kv_heads, 1])
        return op.Reshape(wide, [0, 0, spec.heads * spec.head_dim])


class QueryLayer(nn.Module):
    """Attention and MLP, each behind a norm that also adds the branch before it."""

    def __init__(self, at: str, spec: QuerySpec, precision: Precision) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(f"{at}.input_layernorm", spec.width, spec.epsilon, precision)
        self.self_attn = QueryAttention(f"{at}.self_attn", spec, precision)
        self.post_attention_layernorm = RmsNorm(f"{at}.post_attention_layernorm", spec.width, spec.epsilon, precision)
        self.mlp = GatedMlp(f"{at}.mlp", spec.width, spec.mlp_width, precision, normed=True)

    def forward(
        self, op: OpBuilder, x: ir.Value, residual: ir.Value | None, bias: ir.Value,
        rotary: tuple[ir.Value, ir.Value],
    ) -> tuple[ir.Value, ir.Value]:  # fmt: skip
        """Returns (output of the MLP branch, residual)."""
        normed, residual = self.input_layernorm(op, x, residual)
        attended = self.self_attn(op, normed, bias, rotary)
        normed, residual = self.post_attention_layernorm(op, attended, residual)
        return self.mlp(op, normed), residual


class QueryEncoder(nn.Module):
    """SAM's map [B, n, C] -> the queries' outputs [B, n, C]."""

    def __init__(self, at: str, spec: QuerySpec, precision: Precision) -> None:
        super().__init__()
        self.spec, self.precision = spec, precision
        self.queries = nn.ModuleList(
            [Table((rows, spec.width), copied(name, (rows, spec.width)), precision) for name, rows in spec.queries]
        )
        longest = 2 * max(rows for _, rows in spec.queries)
        cos, sin = rotary_tables(np.arange(longest)[None], [spec.head_dim // 2], spec.rope_theta)
        self.rope_cos = Weight(cos.shape, computed(cos), precision.compute)
        self.rope_sin = Weight(sin.shape, computed(sin), precision.compute)
        self.layers = nn.ModuleList([QueryLayer(f"{at}.layers.{i}", spec, precision) for i in range(spec.layers)])
        self.norm = RmsNorm(f"{at}.norm", spec.width, spec.epsilon, precision)

    def forward(self, op: OpBuilder, patches: ir.Value, rows: ir.Value, bias: ir.Value) -> ir.Value:
        """``rows`` [n] of the queries' table; ``bias`` [2 n, 2 n]: 0 where a row's token attends to a column's."""
        table = op.Concat(*(table(op) for table in self.queries), axis=0)
        queries = op.Unsqueeze(op.Gather(table, rows, axis=0), [0])
        on_gpu = self.precision.provider == "cuda"  # where computed shapes would wait for the GPU
        if on_gpu:
            queries = for_each(op, queries, op.Slice(patches, [0], [1], [1]))
        else:
            queries = op.Tile(queries, op.Concat(op.Shape(patches, start=0, end=1), [1, 1], axis=0))
        x, residual = op.Concat(patches, queries, axis=1), None
        bias = op.Unsqueeze(bias, [0, 1])
        for layer in self.layers:
            x, residual = layer(op, x, residual, bias, (self.rope_cos, self.rope_sin))
        if on_gpu:
            x, residual = (op.Split(branch, axis=1, num_outputs=2, _outputs=2)[1] for branch in (x, residual))
        else:
            count = op.Shape(patches, start=1, end=2)
            x, residual = (op.Slice(branch, count, [2**31 - 1], [1]) for branch in (x, residual))
        return self.norm(op, x, residual)[0]


class QueryTower(nn.Module):
    """pixels [B, 3, side, side] -> features [B, n, hidden], with the separator behind an image."""

    def __init__(self, at: str, spec: QueryTowerSpec, precision: Precision) -> None:
        super().__init__()
        self.spec, self.precision = spec, precision
        self.sam_model = Sam(f"{at}.sam_model", spec.sam, precision)
        self.encoder = QueryEncoder(f"{at}.qwen2_model.model.model", spec.encoder, precision)
        self.projector = linear(
            f"{at}.projector.layers", spec.encoder.width, spec.hidden, precision, bias=True, normed=True
        )
        self.separator = Weight([spec.hidden], copied(f"{at}.view_seperator", (spec.hidden,)), precision.storage)

    def forward(self, op: OpBuilder, pixels: ir.Value, view: ViewInputs, rows: ir.Value, bias: ir.Value) -> ir.Value:
        grid = op.Transpose(self.sam_model(op, pixels, view), perm=[0, 2, 3, 1])
        patches = op.Reshape(grid, [0, -1, self.spec.encoder.width])
        return self.projector(op, self.encoder(op, patches, rows, bias))


def query_vision_graph(tower: QueryTower) -> ir.Graph:
    """See ``sam_graph``."""
    spec, precision = tower.spec, tower.precision

    def rows_and_bias(builder: GraphBuilder) -> tuple[ir.Value, ...]:
        rows = builder.input("query_rows", INT64, ["n"])
        return rows, float_input(builder, "attention_bias", ["2n", "2n"], precision.compute)

    return sam_graph(tower, spec.sam, precision, spec.hidden, rows_and_bias, {"view_separator": tower.separator})
