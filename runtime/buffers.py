"""Memory that sessions are bound to: written and read by the host, addressed by row, on whatever device.

On the CPU a buffer is a NumPy array and a binding is its address, so nothing is copied or allocated per step. On a GPU
what is written goes through a host copy of the same shape, made once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .providers import Device, ort


class Buffer:
    """An array of rows in the device's memory. shape : [rows, ...]"""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], device: Device) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._memory = device.memory
        if self._memory == "cpu":
            self._array = np.zeros(shape, self.dtype)  # pages are taken from the system when first written
        else:
            self._value = ort.OrtValue.ortvalue_from_shape_and_type(shape, self.dtype, self._memory, 0)
            self._host: np.ndarray | None = None  # made when first written to

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:])) * self.dtype.itemsize

    def address(self, row: int = 0) -> int:
        start: int = self._array.ctypes.data if self._memory == "cpu" else self._value.data_ptr()
        return start + row * self.row_bytes

    def write(self, rows: np.ndarray) -> None:
        """Set the first rows."""
        if self._memory == "cpu":
            self._array[: len(rows)] = rows
            return
        if self._host is None:
            self._host = np.zeros(self.shape, self.dtype)
        self._host[: len(rows)] = rows
        self._value.update_inplace(self._host)

    def view(self, rows: int) -> np.ndarray | None:
        """The first rows where the host can see them, else None; what a session writes there shows in the view."""
        return self._array[:rows] if self._memory == "cpu" else None

    def copy_row(self, other: Buffer, source: int, target: int, length: int) -> None:
        """Copy a row of another buffer (or of this one) here, along the third axis only as far as ``length``."""
        if self._memory == "cpu":
            self._array[target, :, :length] = other._array[source, :, :length]
            return
        # ONNX Runtime's Python API copies no part of a device buffer; rows move seldom, so go through the host.
        whole = self._value.numpy()
        whole[target, :, :length] = other._value.numpy()[source, :, :length]
        self._value.update_inplace(whole)

    def bind_input(self, binding: ort.IOBinding, name: str, rows: int, *, first: int = 0) -> None:
        """Let a session read ``rows`` rows from row ``first`` on."""
        binding.bind_input(name, self._memory, 0, self.dtype.type, (rows, *self.shape[1:]), self.address(first))

    def bind_output(self, binding: ort.IOBinding, name: str, rows: int, *, first: int = 0) -> None:
        """Let a session write there."""
        binding.bind_output(name, self._memory, 0, self.dtype.type, (rows, *self.shape[1:]), self.address(first))
