"""How a model is run on a device, where nobody has said: rows of the KV cache, and tokens of a prompt in one turn."""

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

_MOST_SLOTS = {"cpu": 8, "coreml": 8, "cuda": 64}  # decode gains little beyond
_SMALL_MODEL = 64 << 20  # bytes of an export whose products are so small that a second thread mostly waits
_MOST_ENGINES = 4  # of a small model; beyond, Python's lock is what they wait for
_CARD_RESERVE = 2e9  # bytes of a GPU's free memory that activations take
_TYPICAL_LENGTH = 2048  # tokens of a page with its answer
_LEAST_CHUNK = 64  # tokens; the weights of all experts are read for each chunk, which is most of the time of fewer
_MULTIPLICATIONS = 5e10  # a second and thread, in a decoder's products of bytes with VNNI
_WITHOUT_VNNI = 2.5e10


def default_slots(manifest: Manifest, device: Device) -> int:
    """Rows of the KV cache that the free memory holds at a page's typical length, within reason.

    Called when the weights are loaded. Of the host's memory it is a quarter: the rest is for activations, and for rows
    that grow longer. Of a GPU's it is half of what activations leave, since a cache that grows exists twice for a
    moment, one layer at a time; where nobody says what is free, only the bound by device counts.
    """
    most = _MOST_SLOTS[device.name]
    row = position_bytes(manifest.sizes, manifest.decoder.compute[device.graph])
    row *= min(_TYPICAL_LENGTH, manifest.max_length)
    if device.name == "cuda":
        free = free_memory(device.index)
        return most if free is None else int(min(most, max(1, (free - _CARD_RESERVE) // 2 // row)))
    return int(min(most, max(1, available_memory() // 4 // row)))


def spread(manifest: Manifest, device: Device) -> list[Device]:
    """Where engines of a model are to be, when there are many pages and nobody waits for a single one.

    A small model on a CPU is faster in several engines of one thread each than in one of several threads.
    """
    count = min(device.threads or processors(), _MOST_ENGINES)
    small = sum(info.size for info in manifest.files.values()) <= _SMALL_MODEL
    return [replace(device, threads=1)] * count if device.name == "cpu" and small and count > 1 else [device]


def prefill_chunk(manifest: Manifest, device: Device) -> int:
    """Tokens of a prompt that a device feeds in about a second, a power of two.

    From what is known of device and model alone, not from a measurement or from who else is there: the last digits of
    sums depend on the chunk, and a page must read the same from run to run. Taken for the work on a token is twice that
    of a plain decoder layer of this width, 12 x hidden x hidden: close to the built-in families' with their experts.
    """
    if device.name == "cuda":
        return PREFILL_CHUNK
    rate = (device.threads or processors()) * (_MULTIPLICATIONS if adds_bytes_exactly() else _WITHOUT_VNNI)
    tokens = rate / (24 * manifest.sizes.layers * manifest.sizes.hidden_size**2)
    return int(min(PREFILL_CHUNK, max(_LEAST_CHUNK, 2 ** round(math.log2(tokens)))))
