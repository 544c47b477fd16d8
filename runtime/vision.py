"""The vision session, and a cache of features of views."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.family import Feeds, taken
from models.manifest import Manifest

from .features import Outputs, Rows, views_of
from .providers import Device, ort, step_behind
from .stop import Stop

# Batch sizes for views on a GPU: a 640-pixel view takes 10 ms alone, 7 in a batch of two, 5 in one of six. Few sizes,
# since each is slow the first time.
_TOGETHER = (8, 4, 2, 1)
_MOST_PIXELS = 4 * 1024**2  # of a batch's views: activations have to fit beside the KV cache

_KEPT_ARRAYS = 64  # constants kept on the device; a view size has a dozen


class VisionTower:
    """The vision graph of one exported model. Used by one thread.

    cache_mb : megabytes of outputs to cache, so that an image that is asked about twice is encoded once; 0: no cache. A
    view of 1024 pixels has 1.3 MB of features in DeepSeek-OCR, and takes seconds on a CPU.

    batch : most passes to run together; 1: one by one.

    resident : outputs (cached ones too) are values in the device's memory, not arrays.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, device: Device, cache_mb: float = 0, *, resident: bool = False
    ) -> None:
        self._resident = resident
        self._device = device
        self._session = device.session(folder, manifest.vision, encoder=True)
        self._inputs = [given.name for given in self._session.get_inputs()]
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._many_in, self._many_out = (
            {value.name for value in values if value.shape and value.shape[0] == "views"}
            for values in (self._session.get_inputs(), self._session.get_outputs())
        )
        self.batch = _TOGETHER[0] if device.picks and self._many_in else 1
        self._constants = Constants(device) if device.memory != "cpu" else None
        self._cache = FeatureCache(int(cache_mb * 1e6))

    def begin(self) -> None:
        """Prepare the calling thread: on a CPU it lets the decoder go first from now on."""
        if self._device.name == "cpu":
            step_behind()

    def wrap_session(self, wrap: Callable[[Any], Any]) -> None:
        """Put something around the session; see ``Decoder.wrap_sessions``."""
        self._session = wrap(self._session)

    def encode(self, feeds: Feeds, stop: Stop | None = None) -> Any:
        """One vision pass: named arrays in, named arrays out (see the family's ``PreparedImage``).

        stop : ends the pass, which then raises ONNX Runtime's error.
        """
        key = self._cache.key(feeds)
        found = self._cache.get(key)
        if found is None:
            found = self._run(taken(feeds, self._inputs), stop)
            self._cache.put(key, found)
        return found

    def encode_all(self, passes: Sequence[Feeds]) -> list[Any]:
        """Run several passes, of one page or of several; views of one size are batched."""
        keys = [self._cache.key(feeds) for feeds in passes]
        found: list[Outputs | None] = [self._cache.get(key) for key in keys]
        waiting: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
        for index, feeds in enumerate(passes):
            if found[index] is None:
                waiting[self._alike(feeds)].append(index)
        for alike in waiting.values():
            for indices in self._portions(alike, passes):
                for index, outputs in zip(indices, self._run_together([passes[i] for i in indices]), strict=True):
                    self._cache.put(keys[index], outputs)
                    found[index] = outputs
        return [outputs for outputs in found if outputs is not None]

    def warm(self, feeds: Feeds) -> None:
        """Run a pass alone and in batches of every size, so that later passes find their shapes warm."""
        for size in _TOGETHER if self.batch > 1 else (1,):
            if size == 1 or self._fits(size, feeds):
                self._run_together([feeds] * size)

    def _fits(self, size: int, feeds: Feeds) -> bool:
        pixels = max(int(np.prod(feeds[name].shape[-2:])) for name in self._many_in)
        return size * pixels <= _MOST_PIXELS

    def _alike(self, feeds: Feeds) -> tuple[object, ...]:
        """The key of passes that can be batched: sizes of views, and identities of the arrays that come with a size."""
        return tuple(
            feeds[name].shape[1:] if name in self._many_in else (name, id(feeds[name])) for name in self._inputs
        )

    def _portions(self, indices: list[int], passes: Sequence[Feeds]) -> Iterator[list[int]]:
        """Cut passes into batches of the sizes in ``_TOGETHER``."""
        first = passes[indices[0]]
        while indices:
            size = next(size for size in _TOGETHER if size == 1 or (size <= len(indices) and self._fits(size, first)))
            yield indices[:size]
            indices = indices[size:]

    def _run_together(self, passes: Sequence[Feeds]) -> list[Outputs]:
        if len(passes) == 1:
            return [self._run(taken(passes[0], self._inputs), None)]
        fed = taken(passes[0], self._inputs)
        for name in self._many_in:
            fed[name] = np.concatenate([feeds[name] for feeds in passes])
        outputs = self._run(fed, None)
        views = {name: _apart(outputs[name]) for name in self._many_out}
        return [{**outputs, **{name: parts[i] for name, parts in views.items()}} for i in range(len(passes))]

    def _run(self, fed: dict[str, np.ndarray], stop: Stop | None) -> Outputs:
        options = ort.RunOptions()
        # A large page's buffers are reused within a pass, and go back to the system afterwards.
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        options = options if stop is None else stop.over(options)
        with self._device.running():
            if self._constants is None and not self._resident:
                return dict(zip(self._outputs, self._session.run(self._outputs, fed, options), strict=True))
            binding = self._session.io_binding()
            for name, array in fed.items():
                if self._constants is None:
                    binding.bind_cpu_input(name, array)
                else:
                    binding.bind_ortvalue_input(name, self._constants.value(name, array))
            there = (self._device.memory, self._device.index) if self._resident else ("cpu", 0)
            for name in self._outputs:
                binding.bind_output(name, *there)
            self._session.run_with_iobinding(binding, options)
            values = zip(self._outputs, binding.get_outputs(), strict=True)
            if self._resident:
                return {name: Rows(value, self._device) for name, value in values}
            return {name: value.numpy() for name, value in values}


class Constants:
    """Copies on the device of arrays that come with every view of a size, which a family makes once, read-only."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._values: OrderedDict[int, tuple[np.ndarray, ort.OrtValue]] = OrderedDict()  # by the array's identity

    def __len__(self) -> int:
        return len(self._values)

    def value(self, name: str, array: np.ndarray) -> ort.OrtValue:
        """The value for a graph's input. Arrays of shapes stay on the host, where every provider reads them."""
        if array.flags.writeable or name.endswith("_shape"):
            return ort.OrtValue.ortvalue_from_numpy(array)
        found = self._values.get(id(array))
        if found is None:
            found = array, ort.OrtValue.ortvalue_from_numpy(array, self._device.memory, self._device.index)
            self._values[id(array)] = found
            if len(self._values) > _KEPT_ARRAYS:
                self._values.popitem(last=False)
        self._values.move_to_end(id(array))
        return found[1]


class FeatureCache:
    """Outputs of vision passes by the content of their inputs; the least recently used are evicted first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._entries: OrderedDict[bytes, Outputs] = OrderedDict()

    def key(self, feeds: Feeds) -> bytes:
        """Hash of names, shapes and values; empty, to save time, where nothing is cached."""
        if not self._max_bytes:
            return b""
        digest = hashlib.blake2b(digest_size=16)
        for name, array in sorted(feeds.items()):
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.digest()

    def get(self, key: bytes) -> Outputs | None:
        """The outputs cached under the key; None when there are none."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: bytes, outputs: Outputs) -> None:
        """Cache outputs, and evict the oldest until all fit; outputs larger than the whole cache are not cached."""
        size = _bytes_of(outputs)
        if size > self._max_bytes:
            return
        self._entries[key] = outputs
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= _bytes_of(oldest)


def _apart(outputs: np.ndarray | Rows) -> Sequence[np.ndarray | Rows]:
    """Split the outputs of a batch into each view's, [1, ...]."""
    return views_of(outputs) if isinstance(outputs, Rows) else [outputs[i : i + 1] for i in range(len(outputs))]


def _bytes_of(outputs: Outputs) -> int:
    return sum(array.nbytes for array in outputs.values())
