"""Runs what is slow the first time on a GPU, before a request waits for it.

ONNX Runtime tunes the experts once for each power of two of tokens, a second each; the first view of a size takes
another second; a decode step is recorded once for each number of rows. A server that is not warm stalls all streams
when a page of a new size comes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image

from models.family import Family, Feeds

from .decoder import PREFILL_CHUNK, Decoder
from .providers import Device
from .vision import VisionTower

WarmUp = Literal["none", "quick", "full"]
WARM_UPS: tuple[WarmUp, ...] = ("none", "quick", "full")

log = logging.getLogger(__name__)

# Sizes of pages that clients send, in pixels: A4 at 150 dots an inch and a small picture; then landscape, long, square
# and larger.
_PAGES = ((1240, 1754), (600, 400))
_MORE_PAGES = ((1754, 1240), (800, 2400), (1400, 1400), (2480, 3508), (900, 1200))


def default_warm_up(device: Device) -> WarmUp:
    """``quick`` on CUDA, else ``none``: a CPU has nothing to tune, and would spend minutes on blank pages."""
    return "quick" if device.name == "cuda" else "none"


def warm_up(how: WarmUp, decoder: Decoder, vision: VisionTower, family: Family, slots: int) -> None:
    """Run what is slow the first time. Called before anything else runs."""
    if how == "none":
        return
    started = time.monotonic()
    for feeds in _views(family, _PAGES if how == "quick" else (*_PAGES, *_MORE_PAGES)):
        vision.warm(feeds)
    for tokens in token_buckets(slots):
        _prefill(decoder, tokens)
    for rows in decoder.recorded_rows():
        # With length 0 no step reads the cache, which holds whatever the card's memory held.
        decoder.score([0] * rows, [0] * rows)
    log.info("warmed up (%s) in %.1f s", how, time.monotonic() - started)


def token_buckets(slots: int) -> list[int]:
    """Powers of two up to a prompt's chunk, above ``slots``: recorded steps warm the smaller numbers."""
    buckets = [1 << power for power in range(PREFILL_CHUNK.bit_length())]
    return [tokens for tokens in buckets if tokens > slots]


def _prefill(decoder: Decoder, tokens: int) -> None:
    tokens = min(tokens, decoder.capacity - 1)
    embeddings = decoder.embed([0] * tokens)
    decoder.prefill_chunk(0, 0, embeddings, np.arange(tokens)[None])


def _views(family: Family, pages: tuple[tuple[int, int], ...]) -> Iterator[Feeds]:
    """Inputs of the vision graph for blank pages, each set of shapes once."""
    seen = set()
    for size in pages:
        for make in family.prepare_image(Image.new("RGB", size, "white"), {}).passes:
            feeds = make()
            shapes = tuple(sorted((name, array.shape) for name, array in feeds.items()))
            if shapes not in seen:
                seen.add(shapes)
                yield feeds
