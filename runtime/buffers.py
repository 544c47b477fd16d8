"""Memory that sessions are bound to: written and read by the host, addressed by row, on whatever device.

On the CPU a buffer is a NumPy array and a binding is its address, so nothing is copied or allocated per step. On a GPU
what is written goes through a host copy of the same shape, made once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from .providers import Device, ort
from .small_graphs import identity_graph


class Buffer:
    """An array of rows in the device's memory.

    shape : [rows, ...]. element : what sessions call a type that NumPy does not have, as onnx.TensorProto numbers them;
    dtype is then one of the same width.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], device: Device, element: int | None = None
    ) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._element = self.dtype.type if element is None else element
        self._device, self._memory, self._index = device, device.memory, device.index
        if self._memory == "cpu":
            self._array = np.zeros(shape, self.dtype)  # pages are taken from the system when first written
        else:
            self._value = ort.OrtValue.ortvalue_from_shape_and_type(shape, self._element, self._memory, self._index)
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

    def read_row(self, row: int) -> np.ndarray:
        """One row, in the host's memory: the buffer's own on a CPU, else a copy."""
        if self._memory == "cpu":
            found: np.ndarray = self._array[row]
            return found
        host = np.empty(self.shape[1:], self.dtype)
        device_copy(self._device, to_host=True)(self.row_bytes, self.address(row), host.ctypes.data)
        return host

    def copy_row(self, other: Buffer, source: int, target: int, length: int) -> None:
        """Copy a row of another buffer (or of this one) here, along the third axis only as far as ``length``."""
        if self._memory == "cpu":
            self._array[target, :, :length] = other._array[source, :, :length]
            return
        copy = device_copy(self._device)
        position = int(np.prod(self.shape[3:])) * self.dtype.itemsize  # bytes
        for head in range(self.shape[1]):
            copy(
                length * position,
                other.address(source) + head * other.shape[2] * position,
                self.address(target) + head * self.shape[2] * position,
            )

    def copy_position(self, row: int, source: int, target: int) -> None:
        """Copy one place along the third axis of a row to another place there."""
        if self._memory == "cpu":
            self._array[row, :, target] = self._array[row, :, source]
            return
        copy = device_copy(self._device)
        position = int(np.prod(self.shape[3:])) * self.dtype.itemsize  # bytes
        for head in range(self.shape[1]):
            start = self.address(row) + head * self.shape[2] * position
            copy(position, start + source * position, start + target * position)

    def bind_input(self, binding: ort.IOBinding, name: str, rows: int, *, first: int = 0) -> None:
        """Let a session read ``rows`` rows from row ``first`` on."""
        binding.bind_input(name, self._memory, self._index, self._element, (rows, *self.shape[1:]), self.address(first))

    def bind_output(self, binding: ort.IOBinding, name: str, rows: int, *, first: int = 0) -> None:
        """Let a session write there."""
        binding.bind_output(
            name, self._memory, self._index, self._element, (rows, *self.shape[1:]), self.address(first)
        )


@cache
def device_copy(device: Device, *, to_host: bool = False) -> Callable[[int, int, int], None]:
    """A function that copies bytes within the device's memory, or to the host's: (bytes, address from, address to).

    ONNX Runtime's Python API copies whole values only. A graph of one node, bound to addresses, copies any part.
    """
    session = device.small_session(identity_graph())
    there = ("cpu", 0) if to_host else (device.memory, device.index)

    def copy(count: int, source: int, target: int) -> None:
        binding = session.io_binding()
        binding.bind_input("x", device.memory, device.index, np.uint8, (count,), source)
        binding.bind_output("y", *there, np.uint8, (count,), target)
        session.run_with_iobinding(binding)

    return copy
