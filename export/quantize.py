"""Quantisation of weights, symmetric: blocks of 8 or 4 bits for the decoder, channels of 8 bits for vision towers.

The layout of blocks is that of MatMulNBits, QMoE and GatherBlockQuantized: unsigned integers around a zero point in the
middle of the range, two 4-bit values in a byte with the first in the low half, blocks along the input channels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .export_errors import ExportError
from .weights import JointRecipe, Load, NotedLoad, Recipe, as_float32

# Rows quantised at once: an output matrix of 129,280 rows would take 0.7 GB of float32, several times over.
_ROWS_AT_ONCE = 8192

# Shares of a block's range to try for 4 bits. With the whole range only, tiny-ocr in q4 reads 7.3 % of the characters
# of 40 held-out pages wrong; with these 6.3 %, as in float32.
_PARTS_OF_RANGE = (1.0, 0.9, 0.8)

# Power of a channel's weights that moves to the input. Cosine of tiny-ocr's features to float32, without and with
# planted outlier channels 50 times as large: 0.9994 and 0.78 with a power of 0, 0.9994 and 0.994 with 0.5, 0.9993 and
# 0.998 with 0.75, 0.9991 and 0.998 with 1.
_IMPORTANCE_POWER = 0.75


@dataclass(frozen=True)
class Blocks:
    """How weights are quantised. bits : 4 or 8. size : input channels that share one scale, a power of two >= 16."""

    bits: int
    size: int

    @property
    def zero_point(self) -> int:
        """The unsigned value that stands for 0."""
        return 1 << (self.bits - 1)

    def count(self, channels: int) -> int:
        """Blocks in a row of ``channels`` channels; the last block may be partly empty."""
        return -(-channels // self.size)

    def row_bytes(self, channels: int) -> int:
        """Bytes of a quantised row, without scales."""
        return self.count(channels) * self.size * self.bits // 8

    def fitting(self, *channels: int) -> Blocks:
        """The same bits with the largest block, up to this one's size, that divides all the channel counts."""
        size = self.size
        while size > 16 and any(count % size for count in channels):
            size //= 2
        return Blocks(self.bits, size)


def quantize(weight: np.ndarray, blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Round to the nearest value of each block's grid.

    weight : [rows, channels] of any float type.
    Returns bytes [rows, row_bytes(channels)] uint8 and scales [rows, count(channels)] float16.

    The value of largest magnitude is put at the end of the range with one step more (as in llama.cpp's Q4_0), so that
    no step is wasted. With 4 bits, narrower ranges are tried, too, which clip the largest values and are finer for all
    others; each block takes the range with the smallest squared error.
    """
    rows, channels = weight.shape
    count, zero = blocks.count(channels), blocks.zero_point
    padded = np.zeros((rows, count * blocks.size), np.float32)
    padded[:, :channels] = weight
    blocked = padded.reshape(rows, count, blocks.size)
    highest, lowest = blocked.max(axis=-1), blocked.min(axis=-1)
    extremes = np.where(highest > -lowest, highest, lowest)
    tied = highest == -lowest  # then the sign of more values, as the others are clipped
    if tied.any():
        largest = highest[tied][:, None]
        more = (blocked[tied] == largest).sum(axis=-1) > (blocked[tied] == -largest).sum(axis=-1)
        extremes[tied] = np.where(more, highest[tied], lowest[tied])
    steps = extremes / -zero
    if blocks.bits == 8:
        scales = steps.astype(np.float16)
        numbers = _nearest(blocked, scales, zero)
    else:
        numbers, scales = _least_error(blocked, steps, zero)
    numbers += zero
    values: np.ndarray = numbers.astype(np.uint8)
    if blocks.bits == 4:
        values = values[..., 0::2] | (values[..., 1::2] << 4)
    return values.reshape(rows, -1), scales


def _nearest(blocked: np.ndarray, scales: np.ndarray, zero: int) -> np.ndarray:
    """Whole numbers from -zero to zero - 1, [rows, blocks, size] float32, for scales [rows, blocks].

    Scales are rounded to float16 first, so that their error is compensated.
    """
    steps = scales.astype(np.float32)
    inverse = np.divide(1.0, steps, out=np.zeros_like(steps), where=steps != 0)
    numbers: np.ndarray = blocked * inverse[..., None]
    np.rint(numbers, out=numbers)
    return np.clip(numbers, -zero, zero - 1, out=numbers)


def _least_error(blocked: np.ndarray, steps: np.ndarray, zero: int) -> tuple[np.ndarray, np.ndarray]:
    """The best of several ranges for each block: whole numbers as from ``_nearest``, and their scales.

    For chosen numbers, least squares give the best scale.
    """
    numbers, scales = np.zeros_like(blocked), np.zeros(steps.shape, np.float16)
    least = np.full(steps.shape, np.inf, np.float32)
    for part in _PARTS_OF_RANGE:
        tried = _nearest(blocked, (part * steps).astype(np.float16), zero)
        norm = np.einsum("rbs,rbs->rb", tried, tried)
        fitted = np.divide(np.einsum("rbs,rbs->rb", tried, blocked), norm, out=np.zeros_like(norm), where=norm != 0)
        fitted = fitted.astype(np.float16)
        rest = tried * fitted.astype(np.float32)[..., None]
        rest -= blocked
        error = np.einsum("rbs,rbs->rb", rest, rest)
        better = error < least
        least[better], scales[better], numbers[better] = error[better], fitted[better], tried[better]
    return numbers, scales


def dequantize(values: np.ndarray, scales: np.ndarray, blocks: Blocks, channels: int) -> np.ndarray:
    """Undo ``quantize``: [rows, channels] float32."""
    rows = len(values)
    whole: np.ndarray = values if blocks.bits == 8 else np.stack([values & 15, values >> 4], axis=-1)
    blocked = whole.reshape(rows, -1, blocks.size).astype(np.float32) - blocks.zero_point
    blocked *= scales.astype(np.float32)[..., None]
    return blocked.reshape(rows, -1)[:, :channels]


def quantize_channels(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round to 8 bits with one scale per output channel, after equalising the input channels.

    weight : [out, in] of any float type.
    Returns values [in, out] int8, scales [out] float32 and importance [in] float32:
    weight[o, i] is about ``values[i, o] * scales[o] * importance[i]``.

    The layer multiplies its input by the importance before rounding the input, so a channel's rounding error falls as
    its weights grow (as in SmoothQuant, arXiv 2211.10438, but from the weights alone, without sample inputs). Then
    channels many times larger than others, with weights that much smaller, cost little.
    """
    weight = as_float32(weight)
    importance = np.abs(weight).max(axis=0) ** _IMPORTANCE_POWER
    importance[importance == 0] = 1.0
    equal = weight / importance
    scales = np.abs(equal).max(axis=1) / 127
    scales[scales == 0] = 1.0
    values = np.rint(equal / scales[:, None]).astype(np.int8)
    return np.ascontiguousarray(values.T), scales, importance


def dequantize_channels(values: np.ndarray, scales: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Undo ``quantize_channels``: [out, in] float32."""
    restored: np.ndarray = values.T.astype(np.float32) * scales[:, None] * importance
    return restored


@dataclass
class ErrorMeter:
    """Relative quantisation errors of each parameter, collected while the weights are streamed."""

    _sums: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def note(self, name: str, weight: np.ndarray, restored: np.ndarray) -> None:
        """Add some rows of a parameter, original and restored."""
        sums = self._sums[name]
        sums[0] += float(np.square(restored - weight, dtype=np.float64).sum())
        sums[1] += float(np.square(weight, dtype=np.float64).sum())

    @property
    def relative(self) -> dict[str, float]:
        """|restored - weight| / |weight| of each parameter (Frobenius norms)."""
        return {name: math.sqrt(error / norm) if norm else 0.0 for name, (error, norm) in self._sums.items()}


def quantized(source: Recipe, blocks: Blocks, name: str, meter: ErrorMeter | None = None) -> JointRecipe:
    """The recipe of blocks' bytes and scales, from a recipe that yields [..., rows, channels]."""

    def chunks(load: Load) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        noted = NotedLoad(load)
        for chunk in source.chunks(noted):
            read = noted.take()
            matrix = chunk.reshape(-1, chunk.shape[-1])
            for start in range(0, len(matrix), _ROWS_AT_ONCE):
                rows = _finite(matrix[start : start + _ROWS_AT_ONCE], read)
                packed, scales = quantize(rows, blocks)
                if meter is not None:
                    meter.note(name, rows, dequantize(packed, scales, blocks, rows.shape[1]))
                yield packed, scales

    return JointRecipe(source.sources, chunks)


def channel_quantized(source: Recipe, name: str, meter: ErrorMeter | None = None) -> JointRecipe:
    """The recipe of values, scales and importance (see ``quantize_channels``), from one of whole [out, in]."""

    def chunks(load: Load) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        noted = NotedLoad(load)
        weight = np.concatenate([as_float32(chunk) for chunk in source.chunks(noted)])
        made = quantize_channels(_finite(weight, noted.take()))
        if meter is not None:
            meter.note(name, weight, dequantize_channels(*made))
        yield made

    return JointRecipe(source.sources, chunks)


def _finite(weight: np.ndarray, read: str) -> np.ndarray:
    """The values as float32; raises unless all are finite. read : the tensors that they come from, for the error."""
    weight = as_float32(weight)
    if not np.isfinite(weight).all():
        raise ExportError(f"{read} has values that are not finite; download the checkpoint again")
    return weight
