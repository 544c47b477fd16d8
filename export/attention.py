"""Causal attention over the KV cache in standard operators, for types that no attention kernel takes.

The result is GroupQueryAttention's, on any provider, at a higher cost: scores over the whole capacity of the cache are
computed, and each step reads the whole cache. The cache is changed in place where past and present are bound to one
memory: ScatterElements copies nothing when its input and output are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from .layers import INT64

_FORBIDDEN = -1e30  # masked score; with an infinity, rows that see nothing would be NaN


def numbers_in_cache(op: OpBuilder, x: ir.Value, seqlens_k: ir.Value) -> ir.Value:
    """The numbers of the tokens x [B, S, ...] in their rows of the cache, [B, S] int64.

    seqlens_k : [B] int32, tokens in the cache after this step, less one.
    """
    count = op.Squeeze(op.Shape(x, start=1, end=2))
    back = op.Sub(op.Range(0, count, 1), op.Sub(count, 1))  # [S], 0 for the last
    return op.Add(op.Unsqueeze(op.Cast(seqlens_k, to=INT64), [1]), back)


def attention(
    op: OpBuilder, states: Sequence[ir.Value], past: tuple[ir.Value, ir.Value], numbers: ir.Value, *, heads: int,
    kv_heads: int,
) -> tuple[ir.Value, ir.Value, ir.Value]:  # fmt: skip
    """states : queries, keys and values of the step's tokens, [B, S, heads * D] each, positions applied.
    past : keys and values, [B, kv_heads, capacity, D]. numbers : as ``numbers_in_cache`` gives them.

    Returns (attended [B, S, heads * D], keys, values), the latter two with the step's tokens written in.
    """
    query, key, value = states
    slots = op.Unsqueeze(numbers, [1, 3])  # [B, 1, S, 1]
    keys, values = (_written(op, cache, new, slots, kv_heads) for cache, new in zip(past, (key, value), strict=True))
    group = heads // kv_heads  # query heads for each head of the cache
    query = op.Transpose(op.Reshape(query, [0, 0, kv_heads, group, -1]), perm=[0, 2, 3, 1, 4])
    capacity = op.Squeeze(op.Shape(keys, start=2, end=3))
    places = op.Range(0, capacity, 1)  # [capacity]
    # The cache behind a row's last token is uninitialised: a NaN there would survive a weight of 0.
    last = op.Slice(slots, [-1], [2**31 - 1], [2])  # [B, 1, 1, 1]
    written = op.LessOrEqual(op.Unsqueeze(places, [1]), last)  # [B, 1, capacity, 1]
    known_keys, known_values = (op.Where(written, cache, 0.0) for cache in (keys, values))
    scores = op.MatMul(query, op.Unsqueeze(op.Transpose(known_keys, perm=[0, 1, 3, 2]), [2]))
    width = op.Cast(op.Shape(query, start=4, end=5), to=ir.DataType.FLOAT)
    seen = op.LessOrEqual(places, op.Unsqueeze(numbers, [1, 2, 4]))  # [B, 1, 1, S, capacity]
    scores = op.Where(seen, op.Div(scores, op.Sqrt(width)), _FORBIDDEN)
    attended = op.MatMul(op.Softmax(scores, axis=-1), op.Unsqueeze(known_values, [2]))  # [B, kv, group, S, D]
    return op.Reshape(op.Transpose(attended, perm=[0, 3, 1, 2, 4]), [0, 0, -1]), keys, values


def _written(op: OpBuilder, cache: ir.Value, new: ir.Value, slots: ir.Value, kv_heads: int) -> ir.Value:
    """The cache [B, kv_heads, capacity, D] with the new states [B, S, kv_heads * D] in their slots [B, 1, S, 1]."""
    rows = op.Transpose(op.Reshape(new, [0, 0, kv_heads, -1]), perm=[0, 2, 1, 3])
    return op.ScatterElements(cache, op.Expand(slots, op.Shape(rows)), rows, axis=2)
