"""SAM's blocks for a GPU: the arithmetic of ``export.sam_vision`` without operators that are slow on a GPU.

The CPU's graph pads windows and computes shapes. On CUDA, ONNX Runtime's Pad takes a tenth of a view's time, and
computed shapes wait for the GPU. Here windows are gathered by an index, with empty places multiplied by 0, and every
shape is a constant or comes from the host. Tokens stay flat, [B, S, C], and channels of attention are a multiple of 8,
as CUDA's fused kernel requires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from .layers import MICROSOFT, Precision

Shape = ir.Value | Sequence[int]


@dataclass(frozen=True)
class WindowTables:
    """Inputs from the host about the windows of a view of s x s patches; n = ceil(s / window) windows a side."""

    index: ir.Value  # [n * n * window²]: the patch at each place of each window, any for an empty place
    filled: ir.Value  # [n * n * window², 1]: 1, and 0 for an empty place
    inverse: ir.Value  # [s * s]: the place of each patch
    flat_shape: ir.Value  # (-1, n * n * window², 0)


@dataclass(frozen=True)
class SquareShapes:
    """Targets of Reshape for a square of s x s tokens; -1 stands for channels or heads."""

    square: Shape  # (0, s, s, -1)
    split: Shape  # (0, s, s, -1, keys' side): of the products with columns
    join: Shape  # (0, s * s, -1, keys' side)

    @staticmethod
    def of(side: int, keys: int) -> SquareShapes:
        """Shapes of a fixed side. keys : places for a row's or column's keys, some perhaps empty."""
        return SquareShapes([0, side, side, -1], [0, side, side, -1, keys], [0, side * side, -1, keys])


def gathered(op: OpBuilder, x: ir.Value, tables: WindowTables, window: int, width: int) -> ir.Value:
    """[B, S, C] -> the tokens of every window, zeros in empty places, [B * n * n, window², C]."""
    places = op.Mul(op.Gather(x, tables.index, axis=1), tables.filled)
    return op.Reshape(places, [-1, window * window, width])


def scattered(op: OpBuilder, windows: ir.Value, tables: WindowTables) -> ir.Value:
    """Undo ``gathered``."""
    return op.Gather(op.Reshape(windows, tables.flat_shape), tables.inverse, axis=1)


def attention(
    op: OpBuilder, qkv: Sequence[ir.Value], bias: Sequence[ir.Value], places: ir.Value, shapes: SquareShapes, *,
    heads: int, head_dim: int,
) -> ir.Value:  # fmt: skip
    """Attention over a square of tokens, relative positions among the channels.

    qkv : [B, S, C] each. bias : tables for rows and for columns, [query, head_dim, key]. places : [S, 2 * keys' side].
    Returns [B, S, C].
    """
    q, k, v = qkv
    by_head = [0, 0, heads, head_dim]
    square = op.Reshape(q, shapes.square)
    rows, columns = (
        op.MatMul(op.Reshape(side, [0, 0, -1, head_dim]), table)  # [B, s, s * heads, keys' side]
        for side, table in zip((square, op.Transpose(square, perm=[0, 2, 1, 3])), bias, strict=True)
    )
    rows = op.Reshape(rows, [0, -1, heads, 0])
    columns = op.Transpose(op.Reshape(columns, shapes.split), perm=[0, 2, 1, 3, 4])
    queries = op.Concat(op.Reshape(q, by_head), rows, op.Reshape(columns, shapes.join), axis=-1)
    keys = op.Reshape(k, by_head)
    keys = op.Concat(keys, for_each(op, op.Unsqueeze(places, [1]), op.Slice(keys, [0], [1], [3])), axis=-1)
    return op.MultiHeadAttention(
        *(op.Reshape(one, [0, 0, -1]) for one in (queries, keys)), v, num_heads=heads, scale=head_dim**-0.5,
        _domain=MICROSOFT,
    )  # fmt: skip


def for_each(op: OpBuilder, value: ir.Value, like: ir.Value) -> ir.Value:
    """The value broadcast to the shape of ``like``; Expand would need a computed shape."""
    return op.Add(op.Mul(like, op.CastLike(0.0, like)), value)


def keys_side(side: int, head_dim: int) -> int:
    """The smallest number of places for ``side`` keys with which channels are a multiple of 8."""
    return next(places for places in range(side, side + 8) if (head_dim + 2 * places) % 8 == 0)


def padded(op: OpBuilder, value: ir.Value, shape: Sequence[int], precision: Precision) -> ir.Value:
    """A constant with zeros behind its last axis, up to ``shape``; the session folds this."""
    missing = op.ConstantOfShape(list(shape), value=ir.tensor([0.0], dtype=ir.DataType.FLOAT))
    return op.Concat(value, op.Cast(missing, to=precision.compute), axis=-1)
