"""The vision session, and a small memory of views that it has encoded already."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path

import numpy as np

from models.family import Feeds, taken
from models.manifest import Manifest

from .providers import Device, ort
from .stop import Stop


class VisionTower:
    """The vision graph of one exported model. Used by one thread.

    cache_mb : megabytes of outputs to keep, so that an image asked about twice is encoded once; 0 keeps none. A view of
    1024 pixels has 1.3 MB of features in DeepSeek-OCR, and takes seconds on a CPU.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: Device, cache_mb: float = 0) -> None:
        self._device = device
        self._session = device.session(folder, manifest.vision, encoder=True)
        self._inputs = [given.name for given in self._session.get_inputs()]
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._cache = FeatureCache(int(cache_mb * 1e6))

    def encode(self, feeds: Feeds, stop: Stop | None = None) -> Feeds:
        """One vision pass: named arrays in, named arrays out (see the family's ``PreparedImage``).

        stop : ends the pass, which then raises ONNX Runtime's error.
        """
        key = self._cache.key(feeds)
        found = self._cache.get(key)
        if found is None:
            options = ort.RunOptions()
            # The buffers of a large page are used again and again within a pass, and go back to the system after it.
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
            fed = taken(feeds, self._inputs)
            with self._device.running():
                outputs = self._session.run(self._outputs, fed, options if stop is None else stop.over(options))
            found = dict(zip(self._outputs, outputs, strict=True))
            self._cache.put(key, found)
        return found


class FeatureCache:
    """Outputs of vision passes by the content of what went in; the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._entries: OrderedDict[bytes, Feeds] = OrderedDict()

    def key(self, feeds: Feeds) -> bytes:
        """Hash of names, shapes and values; empty where nothing is kept, to save the time."""
        if not self._max_bytes:
            return b""
        digest = hashlib.blake2b(digest_size=16)
        for name, array in sorted(feeds.items()):
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.digest()

    def get(self, key: bytes) -> Feeds | None:
        """What was put under the key, if it is still there."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: bytes, outputs: Feeds) -> None:
        """Keep outputs, and forget the oldest until all fit; outputs larger than the whole cache are not kept."""
        size = _bytes_of(outputs)
        if size > self._max_bytes:
            return
        self._entries[key] = outputs
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= _bytes_of(oldest)


def _bytes_of(outputs: Feeds) -> int:
    return sum(array.nbytes for array in outputs.values())
