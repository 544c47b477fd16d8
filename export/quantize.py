"""Block-wise weight-only quantisation: 8 or 4 bits, one scale per block, symmetric.

The layout is that of MatMulNBits, QMoE and GatherBlockQuantized: unsigned integers around a zero point in the middle of
the range, two 4-bit values in a byte with the first in the low half, blocks along the input channels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .errors import ExportError
from .weights import Load, NotedLoad, Recipe, as_float32

# An output matrix of 129,280 rows would be 0.7 GB of float32, several times over: quantise it in slices.
_ROWS_AT_ONCE = 8192


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
        """Blocks in a row of so many channels; the last one may be partly empty."""
        return -(-channels // self.size)

    def row_bytes(self, channels: int) -> int:
        """Bytes of a quantised row, scales aside."""
        return self.count(channels) * self.size * self.bits // 8

    def fitting(self, *channels: int) -> Blocks:
        """The same bits with the largest block, no larger than this one, that divides all the channel counts."""
        size = self.size
        while size > 16 and any(count % size for count in channels):
            size //= 2
        return Blocks(self.bits, size)


def quantize(weight: np.ndarray, blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Round to the nearest value of each block's grid.

    weight : [rows, channels] of any float type.
    Returns bytes [rows, row_bytes(channels)] uint8 and scales [rows, count(channels)] float16.

    The value of largest magnitude is given the end of the range that has one step more (as in llama.cpp's Q4_0), so
    that no step is wasted; the scale is rounded to float16 before it is used, so that its error is not added.
    """
    rows, channels = weight.shape
    count, zero = blocks.count(channels), blocks.zero_point
    padded = np.zeros((rows, count * blocks.size), np.float32)
    padded[:, :channels] = weight
    blocked = padded.reshape(rows, count, blocks.size)
    highest, lowest = blocked.max(axis=-1), blocked.min(axis=-1)
    extreme = np.where(highest > -lowest, highest, lowest)
    scales = (extreme / -zero).astype(np.float16)
    steps = scales.astype(np.float32)
    inverse = np.divide(1.0, steps, out=np.zeros_like(steps), where=steps != 0)
    blocked *= inverse[..., None]
    np.rint(blocked, out=blocked)
    blocked += zero
    np.clip(blocked, 0, 2 * zero - 1, out=blocked)
    values: np.ndarray = blocked.astype(np.uint8)
    if blocks.bits == 4:
        values = values[..., 0::2] | (values[..., 1::2] << 4)
    return values.reshape(rows, -1), scales


def dequantize(values: np.ndarray, scales: np.ndarray, blocks: Blocks, channels: int) -> np.ndarray:
    """Undo ``quantize``: [rows, channels] float32."""
    rows = len(values)
    whole: np.ndarray = values if blocks.bits == 8 else np.stack([values & 15, values >> 4], axis=-1)
    blocked = whole.reshape(rows, -1, blocks.size).astype(np.float32) - blocks.zero_point
    blocked *= scales.astype(np.float32)[..., None]
    return blocked.reshape(rows, -1)[:, :channels]


@dataclass
class ErrorMeter:
    """Relative quantisation errors, parameter by parameter, gathered while the weights stream by."""

    _sums: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def note(self, name: str, weight: np.ndarray, restored: np.ndarray) -> None:
        """Take in some rows of a parameter and what became of them."""
        sums = self._sums[name]
        sums[0] += float(np.square(restored - weight, dtype=np.float64).sum())
        sums[1] += float(np.square(weight, dtype=np.float64).sum())

    @property
    def relative(self) -> dict[str, float]:
        """|restored - weight| / |weight| of each parameter (Frobenius norms)."""
        return {name: math.sqrt(error / norm) if norm else 0.0 for name, (error, norm) in self._sums.items()}


def quantized(source: Recipe, blocks: Blocks, name: str, meter: ErrorMeter | None = None) -> tuple[Recipe, Recipe]:
    """Recipes of the bytes and of the scales, from one that yields [..., rows, channels].

    The weights are read and quantised once, for the bytes; the scales, a hundredth of their size, wait until their own
    parameter is written, which comes next in the data file.
    """
    waiting: list[np.ndarray] = []

    def values(load: Load) -> Iterator[np.ndarray]:
        waiting.clear()
        noted = NotedLoad(load)
        for chunk in source.chunks(noted):
            read = noted.take()
            matrix = chunk.reshape(-1, chunk.shape[-1])
            for start in range(0, len(matrix), _ROWS_AT_ONCE):
                rows = as_float32(matrix[start : start + _ROWS_AT_ONCE])
                if not np.isfinite(rows).all():
                    raise ExportError(f"{read} has values that are not finite; download the checkpoint again")
                packed, scales = quantize(rows, blocks)
                if meter is not None:
                    meter.note(name, rows, dequantize(packed, scales, blocks, rows.shape[1]))
                waiting.append(scales)
                yield packed

    def scales(load: Load) -> Iterator[np.ndarray]:
        assert waiting, f"{name}: scales are written after their values"
        yield from waiting
        waiting.clear()

    return Recipe(source.sources, values), Recipe({}, scales)
