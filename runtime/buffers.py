"""Memory that sessions are bound to, on any device: the host reads and writes rows of it.

On the CPU a buffer is a NumPy array and a binding is its address, so nothing is copied or allocated per step. On a GPU,
writes go through a host copy of the same shape, allocated once.
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

    shape : [rows, ...]. element : the number in onnx.TensorProto of a type that NumPy lacks; dtype is then a NumPy type
    of the same width.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], device: Device, element: int | None = None
    ) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._element = self.dtype.type if element is None else element
        self._device, self._memory, self._index = device, device.memory, device.index
        if self._memory == "cpu":
            self._array = np.zeros(shape, self.dtype)  # the system allocates pages of memory on the first write
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
        """The first rows as an array that shows what sessions write; None where the host cannot see the memory."""
        return self._array[:rows] if self._memory == "cpu" else None

    def read_row(self, row: int) -> np.ndarray:
        """One row in the host's memory: a view on a CPU, a copy from a GPU."""
        if self._memory == "cpu":
            found: np.ndarray = self._array[row]
            return found
        host = np.empty(self.shape[1:], self.dtype)
        device_copy(self._device, to_host=True)(self.row_bytes, self.address(row), host.ctypes.data)
        return host

    def copy_row(self, other: Buffer, source: int, target: int, length: int) -> None:
        """Copy a row of ``other``, which may be this buffer: only the first ``length`` places of the third axis."""
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
        """Let a session write ``rows`` rows from row ``first`` on."""
        binding.bind_output(
            name, self._memory, self._index, self._element, (rows, *self.shape[1:]), self.address(first)
        )


@cache
def device_copy(device: Device, *, to_host: bool = False) -> Callable[[int, int, int], None]:
    """A function that copies bytes within the device's memory, or to the host's: (bytes, address from, address to).

    ONNX Runtime's Python API copies whole values only; a graph of one Identity node, bound to addresses, copies any
    part.
    """
    session = device.small_session(identity_graph())
    there = ("cpu", 0) if to_host else (device.memory, device.index)

    def copy(count: int, source: int, target: int) -> None:
        binding = session.io_binding()
        binding.bind_input("x", device.memory, device.index, np.uint8, (count,), source)
        binding.bind_output("y", *there, np.uint8, (count,), target)
        session.run_with_iobinding(binding)

    return copy
