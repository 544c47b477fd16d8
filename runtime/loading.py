"""Loads an exported folder: its sessions and KV cache onto a device as an engine, and its tokenizer."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from models.family import Family
from models.manifest import Manifest
from models.model_errors import ManifestError

from .decoder import Decoder
from .engine import Engine
from .planning import default_slots, prefill_chunk
from .providers import Device
from .vision import VisionTower
from .warmup import WarmUp, default_warm_up
from .warmup import warm_up as run_warm_up

log = logging.getLogger(__name__)


def load_engine(
    folder: Path, manifest: Manifest, family: Family, device: Device, *, slots: int | None, max_queue: int,
    vision_cache_mb: float, warm_up: WarmUp | None,
) -> Engine:  # fmt: skip
    """Load the graphs to one device, make the KV cache, and warm the device up; see ``runtime.Model.open``."""
    # A session packs weights in one thread, so loading two at once halves the time; a GPU's are loaded in turn.
    with ThreadPoolExecutor(2 if device.name == "cpu" else 1, thread_name_prefix="load") as pool:
        loading = pool.submit(Decoder, folder, manifest, device, resident=device.resident)
        vision = pool.submit(VisionTower, folder, manifest, device, vision_cache_mb, resident=device.resident)
    decoder = loading.result()
    rows = slots or default_slots(manifest, device)
    decoder.allocate(rows)
    log.info(
        "KV cache on %s: %d rows, %.1f GB at %d tokens each, and more as they grow",
        device.label, rows, decoder.cache_bytes / 1e9, decoder.capacity,
    )  # fmt: skip
    run_warm_up(warm_up or default_warm_up(device), decoder, vision.result(), family, rows)
    chunk = prefill_chunk(manifest, device)
    return Engine(
        vision.result(), decoder, slots=rows, max_queue=max_queue, chunk=chunk, together=chunk, device=device.label
    )


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer, without truncation and padding. Raises ManifestError where there is none to load."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise ManifestError(f"{folder / 'tokenizer.json'} cannot be loaded: {error}; export the model again") from error
    # A training run may have left truncation and padding in the file; prompts are encoded whole and unpadded.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def rows_without_token(tokenizer: Tokenizer, vocabulary: int) -> np.ndarray:
    """Ids below ``vocabulary`` that the tokenizer has no token for, shape [n]."""
    known = np.fromiter(tokenizer.get_vocab(with_added_tokens=True).values(), np.int64)
    empty = np.ones(vocabulary, bool)
    empty[known[known < vocabulary]] = False
    return np.flatnonzero(empty)
