"""SAM's image encoder with windows and global attention: the first stage of DeepSeek-OCR's towers, old and new.

Inputs that depend on the view's size are small matrices from ``models.deepseek_ocr.positions``: resampling a position
table is linear, so ``rows @ table @ columns`` is exactly PyTorch's interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder, OpBuilder, nn

from models.deepseek_ocr.positions import places

from . import sam_cuda
from .graph_ends import add_float_output, float_input, new_graph
from .layers import INT64, MICROSOFT, Conv, LayerNorm, Precision, linear
from .sam_cuda import SquareShapes, WindowTables
from .weights import Load, Recipe, Weight, as_float32, computed, copied


@dataclass(frozen=True)
class SamSpec:
    """SAM ViT with a convolutional neck."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    patch: int
    grid: int  # side of the position table, patches
    window: int  # side of an attention window, patches
    global_layers: tuple[int, ...]
    neck: int
    channels: tuple[int, int]  # channels of the two stride-2 convolutions
    epsilon: float = 1e-6


@dataclass(frozen=True)
class ViewInputs:
    """Inputs from the host for a view size; s = side in patches, q = s / 4."""

    sam_rows: ir.Value  # [s, grid]: resamples SAM's position table
    relative_rows: ir.Value  # [2 s - 1, 2 grid - 1]: resamples the relative tables of global layers
    relative_index: ir.Value  # [s, s]: row of that table for (query, key)
    places: ir.Value  # [s * s, 2 s] of 0 and 1: the row and the column of every patch
    windows: WindowTables | None = None  # windows and their tables: for CUDA only
    shapes: SquareShapes | None = None


class RelativeBias(nn.Module):
    """The terms that decomposed relative positions (MViTv2, arXiv 2112.01526) add to a query's products.

    The attention kernel scales its products afterwards, so the tables are scaled inversely.
    """

    def __init__(self, at: str, side: int, spec: SamSpec, precision: Precision, *, windowed: bool) -> None:
        super().__init__()
        self.spec, self.precision, self.windowed = spec, precision, windowed
        head_dim = spec.width // spec.heads

        def table(name: str) -> Weight:
            shape = (side, head_dim, side) if windowed else (2 * side - 1, head_dim)
            return Weight(shape, _relative_table(name, side, head_dim, gathered=windowed), precision.storage)

        self.rel_pos_h = table(f"{at}.rel_pos_h")
        self.rel_pos_w = table(f"{at}.rel_pos_w")

    def forward(self, op: OpBuilder, q: ir.Value, view: ViewInputs) -> tuple[ir.Value, ir.Value]:
        """q [B, s, s, C] -> (for each row of keys, for each column of keys), both [B, s, s, heads, s].

        For CUDA the tables alone, [query, head_dim, key] each (see ``export.sam_cuda``).
        """
        for_rows, for_columns = self._table(op, self.rel_pos_h, view), self._table(op, self.rel_pos_w, view)
        if view.shapes is not None:
            return for_rows, for_columns
        heads = self.spec.heads
        side = op.Shape(q, start=1, end=2)
        split = op.Concat([0], side, side, [heads, -1], axis=0)
        together = op.Concat([0], side, [-1, self.spec.width // heads], axis=0)
        by_row = op.Reshape(q, together)  # [B, row, column * heads, head_dim]
        by_column = op.Reshape(op.Transpose(q, perm=[0, 2, 1, 3]), together)  # [B, column, row * heads, head_dim]
        rows = op.Reshape(op.MatMul(by_row, for_rows), split)
        columns = op.Reshape(op.MatMul(by_column, for_columns), split)
        return rows, op.Transpose(columns, perm=[0, 2, 1, 3, 4])

    def _table(self, op: OpBuilder, weight: Weight, view: ViewInputs) -> ir.Value:
        """[query, head_dim, key]"""
        table = self.precision.use(op, weight)
        if self.windowed:
            return table
        resized = op.MatMul(view.relative_rows, table)
        return op.Transpose(op.Gather(resized, view.relative_index, axis=0), perm=[0, 2, 1])


class SamAttention(nn.Module):
    """Self-attention over a square of patches [B, s, s, C], with relative positions inside the query-key product.

    The bias of query and key is rows[key's row] + columns[key's column], so additional channels add it to the score,
    and neither bias nor scores are ever in memory as [heads, S, S] (800 MB for 1024 pixels at the published sizes):

        queries: q, rows, columns     keys: k, row and column of the key as ones     [B, S, heads * (head_dim + 2 s)]
    """

    def __init__(self, at: str, side: int, spec: SamSpec, precision: Precision, *, windowed: bool) -> None:
        super().__init__()
        self.spec, self.precision, self.windowed = spec, precision, windowed
        self.qkv = linear(f"{at}.qkv", spec.width, 3 * spec.width, precision, bias=True, normed=True)
        self.bias = RelativeBias(at, side, spec, precision, windowed=windowed)
        self.proj = linear(f"{at}.proj", spec.width, spec.width, precision, bias=True)

    def forward(self, op: OpBuilder, x: ir.Value, view: ViewInputs, places: ir.Value) -> ir.Value:
        if view.shapes is not None:
            return self._flat(op, x, view, places)
        heads = self.spec.heads
        scale = (self.spec.width // heads) ** -0.5
        q, k, v = op.Split(self.qkv(op, x), axis=-1, num_outputs=3, _outputs=3)
        by_head = op.Concat(op.Shape(x, start=0, end=3), [heads, -1], axis=0)
        queries = op.Concat(
            op.Reshape(q, by_head), *self.bias(op, q, view), axis=-1
        )  # [B, s, s, heads, head_dim + 2 s]
        tokens = op.Shape(places, start=0, end=1)
        key = op.Reshape(k, op.Concat([0], tokens, [heads, -1], axis=0))
        place = op.Expand(op.Unsqueeze(places, [1]), op.Concat(op.Shape(x, start=0, end=1), [1, heads, 1], axis=0))
        keys = op.Concat(key, place, axis=-1)  # [B, S, heads, D + 2 s]
        flat = op.Concat([0], tokens, [-1], axis=0)
        attended = op.MultiHeadAttention(
            op.Reshape(queries, flat), op.Reshape(keys, flat), op.Reshape(v, flat), num_heads=heads, scale=scale,
            _domain=MICROSOFT,
        )  # [B, S, C]  # fmt: skip
        return self.proj(op, op.Reshape(attended, op.Shape(x)))

    def _flat(self, op: OpBuilder, x: ir.Value, view: ViewInputs, places: ir.Value) -> ir.Value:
        """The same for CUDA, on flat tokens: [B, S, C] -> [B, S, C]."""
        head_dim, shapes = self.spec.width // self.spec.heads, view.shapes
        bias = self.bias(op, x, view)
        if self.windowed:
            side = self.spec.window
            keys = sam_cuda.keys_side(side, head_dim)
            if spare := keys - side:
                empty = [side, head_dim, spare], [side * side, spare]
                bias = [sam_cuda.padded(op, table, empty[0], self.precision) for table in bias]
                halves = op.Split(places, axis=-1, num_outputs=2, _outputs=2)
                places = op.Concat(*(sam_cuda.padded(op, half, empty[1], self.precision) for half in halves), axis=-1)
            shapes = SquareShapes.of(side, keys)
        assert shapes is not None
        qkv = op.Split(self.qkv(op, x), axis=-1, num_outputs=3, _outputs=3)
        return self.proj(
            op, sam_cuda.attention(op, qkv, bias, places, shapes, heads=self.spec.heads, head_dim=head_dim)
        )


class SamBlock(nn.Module):
    """Transformer block; attention within windows of ``spec.window`` patches, or over the whole view."""

    def __init__(self, at: str, index: int, spec: SamSpec, precision: Precision) -> None:
        super().__init__()
        self.spec = spec
        self.windowed = index not in spec.global_layers
        side = spec.window if self.windowed else spec.grid
        self.norm1 = LayerNorm(f"{at}.norm1", spec.width, spec.epsilon, precision)
        self.attn = SamAttention(f"{at}.attn", side, spec, precision, windowed=self.windowed)
        self.norm2 = LayerNorm(f"{at}.norm2", spec.width, spec.epsilon, precision)
        self.mlp = SamMlp(f"{at}.mlp", spec, precision)

    def forward(self, op: OpBuilder, x: ir.Value, view: ViewInputs, window_places: ir.Value) -> ir.Value:
        normed = self.norm1(op, x)
        if view.windows is not None:
            attended = self._flat(op, normed, view, window_places)
        elif self.windowed:
            windows = partition(op, normed, self.spec.window)
            attended = unpartition(op, self.attn(op, windows, view, window_places), normed, self.spec.window)
        else:
            attended = self.attn(op, normed, view, view.places)
        x = op.Add(x, attended)
        return op.Add(x, self.mlp(op, self.norm2(op, x)))

    def _flat(self, op: OpBuilder, x: ir.Value, view: ViewInputs, window_places: ir.Value) -> ir.Value:
        """Attention for CUDA, [B, S, C] -> [B, S, C]."""
        if not self.windowed:
            return self.attn(op, x, view, view.places)
        assert view.windows is not None
        windows = sam_cuda.gathered(op, x, view.windows, self.spec.window, self.spec.width)
        return sam_cuda.scattered(op, self.attn(op, windows, view, window_places), view.windows)


class SamMlp(nn.Module):
    def __init__(self, at: str, spec: SamSpec, precision: Precision) -> None:
        super().__init__()
        self.lin1 = linear(f"{at}.lin1", spec.width, spec.mlp_width, precision, bias=True, normed=True)
        self.lin2 = linear(f"{at}.lin2", spec.mlp_width, spec.width, precision, bias=True)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.lin2(op, op.Gelu(self.lin1(op, x)))


class Neck(nn.Module):
    """Two convolutions, each with a norm over channels: [B, s, s, width] -> [B, neck, s, s]."""

    def __init__(self, at: str, spec: SamSpec, precision: Precision) -> None:
        super().__init__()
        self.conv1 = Conv(f"{at}.0", spec.width, spec.neck, 1, precision, stride=1, padding=0, bias=False)
        self.norm1 = LayerNorm(f"{at}.1", spec.neck, spec.epsilon, precision)
        self.conv2 = Conv(f"{at}.2", spec.neck, spec.neck, 3, precision, stride=1, padding=1, bias=False)
        self.norm2 = LayerNorm(f"{at}.3", spec.neck, spec.epsilon, precision)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        x = op.Transpose(x, perm=[0, 3, 1, 2])
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = op.Transpose(norm(op, op.Transpose(conv(op, x), perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2])
        return x


class Sam(nn.Module):
    """pixels [B, 3, 16 s, 16 s] -> map [B, channels, s / 4, s / 4]."""

    def __init__(self, at: str, spec: SamSpec, precision: Precision) -> None:
        super().__init__()
        self.spec, self.precision = spec, precision
        self.patch_embed = Conv(
            f"{at}.patch_embed.proj", 3, spec.width, spec.patch, precision, stride=spec.patch, padding=0, bias=True
        )
        positions = (1, spec.grid, spec.grid, spec.width)
        self.pos_embed = Weight(positions, copied(f"{at}.pos_embed", positions), precision.storage)
        self.blocks = nn.ModuleList([SamBlock(f"{at}.blocks.{i}", i, spec, precision) for i in range(spec.layers)])
        self.neck = Neck(f"{at}.neck", spec, precision)
        first, second = spec.channels
        self.net_2 = Conv(f"{at}.net_2", spec.neck, first, 3, precision, stride=2, padding=1, bias=False)
        self.net_3 = Conv(f"{at}.net_3", first, second, 3, precision, stride=2, padding=1, bias=False)
        self.window_places = Weight((spec.window**2, 2 * spec.window), computed(places(spec.window)), precision.compute)

    def forward(self, op: OpBuilder, pixels: ir.Value, view: ViewInputs) -> ir.Value:
        x = op.Transpose(self.patch_embed(op, pixels), perm=[0, 2, 3, 1])  # [B, s, s, C]
        table = self.precision.use(op, self.pos_embed)
        x = op.Add(x, resample(op, table, view.sam_rows, self.spec.grid, self.spec.width))
        if view.shapes is not None:
            x = op.Reshape(x, [0, -1, self.spec.width])
        for block in self.blocks:
            x = block(op, x, view, self.window_places)
        if view.shapes is not None:
            x = op.Reshape(x, view.shapes.square)
        return self.net_3(op, self.net_2(op, self.neck(op, x)))


def view_inputs(builder: GraphBuilder, spec: SamSpec, precision: Precision) -> tuple[ir.Value, ViewInputs]:
    """Declare the pixels [views, 3, side, side] and the host's inputs; floats are cast to the type of computation."""
    compute = precision.compute
    pixels = float_input(builder, "pixel_values", ["views", 3, "side", "side"], compute)
    windows, squares = None, None
    if precision.provider == "cuda":
        windows = WindowTables(
            index=builder.input("window_index", INT64, ["places"]),
            filled=float_input(builder, "window_filled", ["places", 1], compute),
            inverse=builder.input("window_inverse", INT64, ["s_s"]),
            flat_shape=builder.input("window_shape", INT64, [3]),
        )
        squares = SquareShapes(
            square=builder.input("square_shape", INT64, [4]),
            split=builder.input("split_shape", INT64, [5]),
            join=builder.input("join_shape", INT64, [4]),
        )
    view = ViewInputs(
        sam_rows=float_input(builder, "sam_rows", ["s", spec.grid], compute),
        relative_rows=float_input(builder, "relative_rows", ["2s_1", 2 * spec.grid - 1], compute),
        relative_index=builder.input("relative_index", INT64, ["s", "s"]),
        places=float_input(builder, "places", ["s_s", "2s"], compute),
        windows=windows,
        shapes=squares,
    )
    return pixels, view


def sam_graph(
    tower: Callable[..., ir.Value], spec: SamSpec, precision: Precision, hidden: int,
    inputs: Callable[[GraphBuilder], tuple[ir.Value, ...]], separators: Mapping[str, Weight],
) -> ir.Graph:  # fmt: skip
    """Declare vision.onnx of a tower that begins with SAM. Float inputs and outputs are float32; the graph casts.

    tower : from (op, pixels, view, other declared ``inputs``) to features [views, n, hidden].
    separators : output -> weights [hidden] that the host puts between features.
    """
    builder = new_graph("vision")
    op = builder.op
    pixels, view = view_inputs(builder, spec, precision)
    features = tower(op, pixels, view, *inputs(builder))
    rows = {name: op.Identity(weight) for name, weight in separators.items()}
    add_float_output(builder, features, "features", precision.compute, ["views", "n", hidden])
    for name, row in rows.items():
        add_float_output(builder, row, name, precision.storage, [hidden])
    return builder.graph


def partition(op: OpBuilder, x: ir.Value, window: int) -> ir.Value:
    """[B, s, s, C] -> [B * n * n, window, window, C], zero-padded to n = ceil(s / window) windows a side."""
    side = op.Shape(x, start=1, end=2)
    padding = op.Mod(op.Sub([window], op.Mod(side, [window])), [window])
    x = op.Pad(x, op.Concat([0, 0, 0, 0, 0], padding, padding, [0], axis=0))
    count = op.Div(op.Add(side, padding), [window])
    x = op.Reshape(x, op.Concat([0], count, [window], count, [window, -1], axis=0))
    x = op.Transpose(x, perm=[0, 1, 3, 2, 4, 5])  # [B, n, n, window, window, C]
    return op.Reshape(x, op.Concat([-1, window, window], op.Shape(x, start=5, end=6), axis=0))


def unpartition(op: OpBuilder, windows: ir.Value, like: ir.Value, window: int) -> ir.Value:
    """Undo ``partition``: back to the shape of ``like`` [B, s, s, C]."""
    batch, side = op.Shape(like, start=0, end=1), op.Shape(like, start=1, end=2)
    count = op.Div(op.Add(side, [window - 1]), [window])
    x = op.Reshape(windows, op.Concat(batch, count, count, [window, window, -1], axis=0))
    x = op.Transpose(x, perm=[0, 1, 3, 2, 4, 5])  # [B, n, window, n, window, C]
    padded = op.Mul(count, [window])
    x = op.Reshape(x, op.Concat(batch, padded, padded, [-1], axis=0))
    return op.Slice(x, [0, 0], op.Concat(side, side, axis=0), [1, 2])


def resample(op: OpBuilder, table: ir.Value, rows: ir.Value, grid: int, width: int) -> ir.Value:
    """rows [n, grid] applied to both axes of a square table of grid * grid positions -> [n, n, width]."""
    down = op.MatMul(rows, op.Reshape(table, [grid, grid * width]))  # [n, grid * width]
    return op.MatMul(rows, op.Reshape(down, [-1, grid, width]))  # broadcast over the first axis: [n, n, width]


def _relative_table(name: str, side: int, head_dim: int, *, gathered: bool) -> Recipe:
    """The relative table [2 side - 1, head_dim] times sqrt(head_dim), which the attention kernel divides by.

    gathered : as [query, head_dim, key], for windows, whose size is fixed.
    """
    index = np.arange(side)[:, None] - np.arange(side)[None, :] + side - 1

    def chunks(load: Load) -> Iterator[np.ndarray]:
        table = as_float32(load(name)) * np.float32(math.sqrt(head_dim))
        yield table[index].transpose(0, 2, 1) if gathered else table

    return Recipe({name: (2 * side - 1, head_dim)}, chunks)
