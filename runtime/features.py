"""Image features, and prompts that hold them, kept in a device's memory from the vision graph to the decoder.

A family's ``assemble`` only puts rows of features in order. So ``assemble`` is called with the rows' numbers in place
of the rows, and a graph on the device gathers the rows in the order that comes out. On a CPU, NumPy sees ONNX Runtime's
memory and none of this is needed; tests run this code there all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from models.family import Feeds, PreparedImage

from .buffers import device_copy
from .providers import Device, ort
from .small_graphs import merging_graph

_ITEM_BYTES = {1: 4, 10: 2}  # by the numbers of onnx.TensorProto for float32 and float16


class Rows:
    """Rows [n, width] in a device's memory, which stays allocated while they live; a slice shares that memory.

    shape : of the device value that holds the rows; its last axis is the width.
    """

    def __init__(self, value: ort.OrtValue, device: Device, first: int = 0, count: int | None = None) -> None:
        self.value, self.device, self.shape = value, device, tuple(value.shape())
        self.width, self.element = self.shape[-1], value.element_type()
        self._first, self._count = first, int(np.prod(self.shape[:-1])) if count is None else count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> Rows:
        first, end, _ = part.indices(self._count)
        return Rows(self.value, self.device, self._first + first, max(0, end - first))

    @property
    def nbytes(self) -> int:
        return self._count * self.row_bytes

    @property
    def row_bytes(self) -> int:
        width: int = self.width
        return width * _ITEM_BYTES[self.element]

    @property
    def address(self) -> int:
        start: int = self.value.data_ptr()
        return start + self._first * self.row_bytes

    def bind(self, binding: ort.IOBinding, name: str, batch: tuple[int, ...] = ()) -> None:
        """Bind the rows as a graph's input [n, width], or [*batch, n / batch, width]."""
        shape = (*batch, len(self) // int(np.prod(batch)), self.width)
        binding.bind_input(name, self.device.memory, self.device.index, self.element, shape, self.address)


Outputs = Mapping[str, np.ndarray | Rows]  # of one vision pass: either all on the host or all on a device


@dataclass(frozen=True)
class OrderedRows:
    """Features of one image: rows of several arrays. order : row numbers, counted through all arrays, [tokens]."""

    sources: tuple[Rows, ...]
    order: np.ndarray


def assembled(image: PreparedImage, outputs: Sequence[Outputs]) -> np.ndarray | OrderedRows:
    """Features of an image from the outputs of its passes, [tokens, hidden]."""
    sources: list[Rows] = []
    passes: list[Feeds] = []
    total = 0
    for one in outputs:
        arrays: dict[str, np.ndarray] = {}
        for name, value in one.items():
            if isinstance(value, Rows):
                arrays[name] = np.arange(total, total + len(value)).reshape(*value.shape[:-1], 1)
                sources.append(value)
                total += len(value)
            else:
                arrays[name] = value
        passes.append(arrays)
    found = image.assemble(passes)
    return _without_unused(sources, found[:, 0]) if sources else found


def _without_unused(sources: Sequence[Rows], order: np.ndarray) -> OrderedRows:
    """Drop arrays that no row is taken from: every tile brings the newline's row, of which one is used."""
    starts = np.cumsum([0, *map(len, sources)])
    which = np.searchsorted(starts, order, side="right") - 1
    used = np.unique(which)
    starts_left = np.cumsum([0, *(len(sources[index]) for index in used)])
    return OrderedRows(
        tuple(sources[index] for index in used), order - starts[which] + starts_left[np.searchsorted(used, which)]
    )


def merge(
    embeddings: np.ndarray | Rows, slots: np.ndarray, features: Sequence[np.ndarray | OrderedRows]
) -> np.ndarray | Rows:
    """A prompt's embeddings [tokens, hidden] with image features in their slots; both on the host or both on a device.

    slots : which tokens are image slots, [tokens] bool.
    """
    if isinstance(embeddings, Rows):
        return _merged_there(embeddings, slots, [one for one in features if isinstance(one, OrderedRows)])
    merged = embeddings.copy()
    merged[slots] = np.concatenate([one for one in features if isinstance(one, np.ndarray)])
    return merged


def _merged_there(embeddings: Rows, slots: np.ndarray, features: Sequence[OrderedRows]) -> Rows:
    device, sources = embeddings.device, [embeddings]
    order, places, total = np.arange(len(embeddings)), [], len(embeddings)
    for one in features:
        places.append(total + one.order)
        sources.extend(one.sources)
        total += sum(map(len, one.sources))
    order[slots] = np.concatenate(places)
    with device.running():
        session = _merging(device, tuple(rows.element for rows in sources))
        binding = session.io_binding()
        for number, rows in enumerate(sources):
            rows.bind(binding, f"rows.{number}")
        binding.bind_cpu_input("order", order)
        binding.bind_output("merged", device.memory, device.index)
        session.run_with_iobinding(binding)
        return Rows(binding.get_outputs()[0], device)


def padded(prompts: Sequence[Rows]) -> Rows:
    """Prompts one behind the other, each padded to the longest with its own first rows."""
    device, first = prompts[0].device, prompts[0]
    longest = max(map(len, prompts))
    shape = (len(prompts), longest, first.width)
    with device.running():
        value = ort.OrtValue.ortvalue_from_shape_and_type(shape, first.element, device.memory, device.index)
        copy, target = device_copy(device), Rows(value, device)
        for index, prompt in enumerate(prompts):
            filled = 0
            while filled < longest:
                count = min(len(prompt), longest - filled)
                copy(count * prompt.row_bytes, prompt.address, target[index * longest + filled :].address)
                filled += count
    return target


def views_of(outputs: Rows) -> list[Rows]:
    """Copy a batch of views [views, ...] to single ones, [1, ...], so that each can be freed by itself."""
    (count, *shape), device = outputs.shape, outputs.device
    size, copy, found = len(outputs) // count, device_copy(device), []
    with device.running():
        for index in range(count):
            value = ort.OrtValue.ortvalue_from_shape_and_type((1, *shape), outputs.element, device.memory, device.index)
            found.append(Rows(value, device))
            view = outputs[index * size : (index + 1) * size]
            copy(view.nbytes, view.address, found[-1].address)
    return found


@cache
def _merging(device: Device, elements: tuple[int, ...]) -> ort.InferenceSession:
    return device.small_session(merging_graph(elements))
