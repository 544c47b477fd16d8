"""The KV cache: one buffer per layer and side, [slots, kv heads, capacity, head dim], shared by past and present.

The rows in use are always the first ones, so that a decode step binds one contiguous block. The capacity grows in steps
up to the model's maximum: allocating all 8,192 positions at once would cost a gigabyte a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from models.manifest import DecoderInfo

from .buffers import Buffer
from .machine import available_memory
from .providers import Device

_BFLOAT16 = 16  # onnx.TensorProto.DataType; NumPy has no such type

# Positions that a row starts with, doubled as often as needed.
FIRST_CAPACITY = 1024


def position_bytes(sizes: DecoderInfo, compute: str) -> int:
    """Bytes that one token takes in a row: keys and values of all layers."""
    width = 2 if compute == "bfloat16" else np.dtype(compute).itemsize
    return 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * width


def kept(answered: int, window: int | None) -> int:
    """Tokens of an answer that a row keeps after ``fed`` tokens, see ``Window``; without a window, all."""
    return answered if window is None else min(answered, window - 1)


@dataclass
class Window:
    """Which token to evict next, in an answer that attends to its prompt and to its own last ``size`` tokens.

    Cached keys are already rotated to their positions, and attention asks for no order. So a row keeps the ``prompt``,
    a ring of ``size - 1`` tokens behind the prompt, and one last place where the kernel writes the newest token. When
    the ring is full, the newest token replaces the ring's oldest.
    """

    prompt: int  # tokens
    size: int
    oldest: int = 0  # the oldest token's place in the ring

    @property
    def full(self) -> int:
        """Tokens in the row when the ring is full."""
        return self.prompt + self.size - 1

    def replace(self) -> int | None:
        """The place that the newest token takes; None when the ring has no place."""
        if self.size == 1:
            return None
        place = self.prompt + self.oldest
        self.oldest = (self.oldest + 1) % (self.size - 1)
        return place


class KvCache:
    """Keys and values of all running requests, one row each, in the type that the decoder computes in."""

    def __init__(self, sizes: DecoderInfo, slots: int, compute: str, device: Device) -> None:
        self._sizes, self._slots, self._device = sizes, slots, device
        self._element = _BFLOAT16 if compute == "bfloat16" else None
        self._dtype = np.dtype(np.uint16 if self._element else compute)
        self._position_bytes = position_bytes(sizes, compute)
        self.capacity = 0
        self.buffers: dict[str, Buffer] = {}
        self._windows: list[Window | None] = [None] * slots
        self._allocate(self._step_for(1), rows=0)

    def fit(self, length: int, rows: int) -> bool:
        """Make room for ``length`` positions a row and keep the first ``rows`` rows; with 0 rows, shrink as well.

        A device that replays steps never shrinks: every capacity has its own recordings.

        Returns whether the buffers moved, so that bindings to them are stale.

        Raises
        ------
        MemoryError
            when the host's memory does not suffice for those rows and one more; the system would promise it all the
            same, and kill the process on use. A GPU's provider raises its own error.
        """
        wanted = self._step_for(length)
        if wanted == self.capacity or (wanted < self.capacity and (rows or self._device.replays)):
            return False
        if wanted > self.capacity and self._device.memory == "cpu":
            needed, free = (rows + 1) * (wanted - self.capacity) * self._position_bytes, available_memory()
            if needed > free:
                raise MemoryError(
                    f"the KV cache needs {needed / 1e6:,.0f} MB more for {length} tokens in a row beside {rows} "
                    f"others, and {free / 1e6:,.0f} MB are free; send shorter requests, or set fewer slots or a "
                    "smaller max_context"
                )
        self._allocate(wanted, rows)
        return True

    def bind(self, binding: ort.IOBinding, rows: int, *, first: int = 0) -> None:
        """Bind past and present of ``rows`` rows from ``first`` on to the same memory."""
        for name, buffer in self.buffers.items():
            buffer.bind_input(binding, f"past_key_values.{name}", rows, first=first)
            buffer.bind_output(binding, f"present.{name}", rows, first=first)

    def begin(self, row: int, window: Window | None) -> None:
        """Note that a prompt goes into a row. window : tokens that the answer attends to; None: all."""
        self._windows[row] = window

    def close_ring(self, lengths: Sequence[int]) -> None:
        """After a step: where a row's ring is full, put the newest token in place of the oldest.

        lengths : tokens in each of the first rows before the step.
        """
        for row, (window, length) in enumerate(zip(self._windows, lengths, strict=False)):
            if window is None or length < window.full or (place := window.replace()) is None:
                continue
            for buffer in self.buffers.values():
                buffer.copy_position(row, length, place)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of a row into another row."""
        self._windows[target] = self._windows[source]
        for buffer in self.buffers.values():
            buffer.copy_row(buffer, source, target, length)

    def _step_for(self, length: int) -> int:
        capacity = FIRST_CAPACITY
        while capacity < length:
            capacity *= 2
        return min(capacity, self._sizes.max_length)

    def _allocate(self, capacity: int, rows: int) -> None:
        """Replace the buffers by ones of another capacity, one after the other, so that only one exists twice."""
        shape = (self._slots, self._sizes.kv_heads, capacity, self._sizes.head_dim)
        for layer in range(self._sizes.layers):
            for side in ("key", "value"):
                name = f"{layer}.{side}"
                if name in self.buffers and self.buffers[name].shape == shape:
                    continue  # grown before memory ran out
                buffer = Buffer(shape, self._dtype, self._device, self._element)
                for row in range(rows):
                    buffer.copy_row(self.buffers[name], row, row, min(self.capacity, capacity))
                self.buffers[name] = buffer
        self.capacity = capacity

    @property
    def nbytes(self) -> int:
        """Bytes of all rows at the present capacity."""
        return sum(self._slots * buffer.row_bytes for buffer in self.buffers.values())
