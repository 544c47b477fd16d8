"""The KV cache: one buffer per layer and side, [slots, kv heads, max length, head dim], shared by past and present.

The rows in use are always the first ones, so that a decode step binds one contiguous block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from models.manifest import DecoderInfo

from .buffers import Buffer
from .providers import Device


class KvCache:
    """Keys and values of all running requests, one row each.

    On the CPU only the pages that were written take memory: a row of 900 tokens costs 900 tokens, whatever the maximum.
    """

    def __init__(self, sizes: DecoderInfo, slots: int, dtype: np.dtype[Any], device: Device) -> None:
        self.slots = slots
        self._sizes = sizes
        shape = (slots, sizes.kv_heads, sizes.max_length, sizes.head_dim)
        self._layers = [
            (f"{layer}.{side}", Buffer(shape, dtype, device))
            for layer in range(sizes.layers)
            for side in ("key", "value")
        ]
        self._device = device

    def bind(self, binding: ort.IOBinding, rows: int, *, first: int = 0) -> None:
        """Bind past and present of ``rows`` rows from ``first`` on to the same memory."""
        for name, buffer in self._layers:
            buffer.bind_input(binding, f"past_key_values.{name}", rows, first=first)
            buffer.bind_output(binding, f"present.{name}", rows, first=first)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of a row into another row."""
        for _, buffer in self._layers:
            buffer.copy_row(source, target, length)
