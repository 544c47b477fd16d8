"""Defaults for running a model on a device: rows of the KV cache, and tokens of a prompt fed in one turn."""

from __future__ import annotations

import math
from dataclasses import replace

from models.manifest import Manifest
from models.processor import adds_bytes_exactly

from .decoder import PREFILL_CHUNK
from .gpu import free_memory
from .kv_cache import position_bytes
from .machine import available_memory, processors
from .providers import Device

_MOST_SLOTS = {"cpu": 8, "coreml": 8, "cuda": 64}  # rows; decode gains little beyond
_SMALL_MODEL = 64 << 20  # bytes of an export: below, matrix products are so small that a second thread mostly waits
_MOST_ENGINES = 4  # engines of a small model; more wait for Python's lock
_CARD_RESERVE = 2e9  # bytes of a GPU's free memory for activations
_TYPICAL_LENGTH = 2048  # tokens of a typical page with its answer
_LEAST_CHUNK = 64  # tokens; a chunk reads the weights of all experts, which dominates shorter chunks
_MULTIPLICATIONS = 5e10  # per second and thread, in a decoder's 8-bit products with VNNI
_WITHOUT_VNNI = 2.5e10


def default_slots(manifest: Manifest, device: Device) -> int:
    """Rows of the KV cache that the free memory holds at a page's typical length, within reason.

    Called when the weights are loaded. A host's cache gets a quarter of the free memory: the rest is for activations
    and for rows that grow longer. A GPU's gets half of what activations leave, since a layer's cache exists twice while
    it grows. Where the free memory is unknown, only the device's bound counts.
    """
    most = _MOST_SLOTS[device.name]
    row = position_bytes(manifest.sizes, manifest.decoder.compute[device.graph])
    row *= min(_TYPICAL_LENGTH, manifest.max_length)
    if device.name == "cuda":
        free = free_memory(device.index)
        return most if free is None else int(min(most, max(1, (free - _CARD_RESERVE) // 2 // row)))
    return int(min(most, max(1, available_memory() // 4 // row)))


def spread(manifest: Manifest, device: Device) -> list[Device]:
    """Devices for the engines of a model that reads many pages, where throughput counts and not a single page's time.

    A small model on a CPU is faster in several engines of one thread each than in one of several threads.
    """
    count = min(device.threads or processors(), _MOST_ENGINES)
    small = sum(info.size for info in manifest.files.values()) <= _SMALL_MODEL
    return [replace(device, threads=1)] * count if device.name == "cpu" and small and count > 1 else [device]


def prefill_chunk(manifest: Manifest, device: Device) -> int:
    """Tokens of a prompt that a device feeds in about a second, a power of two.

    The number depends on device and model alone: neither on a measurement nor on other requests. The last digits of
    sums depend on the chunk, and a page must read the same in every run. A token's work is taken as twice that of a
    plain decoder layer of this width, 12 x hidden x hidden: close to that of the built-in families with experts.
    """
    if device.name == "cuda":
        return PREFILL_CHUNK
    rate = (device.threads or processors()) * (_MULTIPLICATIONS if adds_bytes_exactly() else _WITHOUT_VNNI)
    tokens = rate / (24 * manifest.sizes.layers * manifest.sizes.hidden_size**2)
    return int(min(PREFILL_CHUNK, max(_LEAST_CHUNK, 2 ** round(math.log2(tokens)))))
