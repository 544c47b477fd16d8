"""What the engine can do in two ways, measured in turns on one export: which is worth it on this device?

    python -m tools.two_ways EXPORT --device cuda [--parts together,features,candidates] [--rounds 9]

together: prompts one after the other, or in one run. features: a page's first token with features that come to the
host and go back, or stay on the device. candidates: a step's choice from 64 or from 8 of each row. Each line has both
medians and their ratio; below 1 the second way is the faster one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.manifest import Manifest
from runtime import model as model_module
from runtime import picker
from runtime.decoder import Decoder
from runtime.model import Model
from runtime.providers import Device, find_device

PROMPTS = (
    [16] * 8,
    [32] * 8,
    [64] * 4,
    [64] * 8,
    [128] * 4,
    [256] * 4,
    [128, 120, 110, 100],
    [128, 64, 64, 32],
)  # tokens
ROWS = (1, 8, 64)
PAGE = (1240, 1754)  # pixels


def in_turns(name: str, first: Callable[[], object], second: Callable[[], object], rounds: int) -> None:
    """Run both ways once for their first time, then in turns, and say the medians."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 1):
        for way, taken in zip((first, second), seconds, strict=True):
            started = time.perf_counter()
            way()
            if index:
                taken.append(time.perf_counter() - started)
    one, two = map(statistics.median, seconds)
    print(f"{name}: {one * 1e3:.2f} ms, {two * 1e3:.2f} ms, ratio {two / one:.2f}", flush=True)


def together(folder: Path, device: Device, rounds: int) -> None:
    """Prompts one after the other, or in one run, which leaves the last tokens to a step: both ways take that step."""
    manifest, random = Manifest.load(folder), np.random.default_rng(0)
    decoder = Decoder(folder, manifest, device, max(map(len, PROMPTS)), resident=device.resident)
    for lengths in PROMPTS:
        ids = [random.integers(0, manifest.sizes.vocabulary, length).tolist() for length in lengths]
        prompts = [decoder.embed(one) for one in ids]
        positions = [np.arange(length)[None] for length in lengths]
        decoder.make_room(max(lengths) + 2, rows=0)

        def alone(prompts: list[np.ndarray] = prompts, lengths: list[int] = lengths) -> None:
            for row, prompt in enumerate(prompts):
                decoder.prefill_chunk(row, 0, prompt, np.arange(len(prompt))[None])
            decoder.score([5] * len(lengths), lengths)

        def at_once(
            prompts: list[np.ndarray] = prompts, lengths: list[int] = lengths,
            positions: list[np.ndarray] = positions, ids: list[list[int]] = ids,
        ) -> None:  # fmt: skip
            decoder.prefill_together(0, [prompt[:-1] for prompt in prompts], positions)
            decoder.score([one[-1] for one in ids], [length - 1 for length in lengths])

        in_turns(f"prompts of {lengths}, alone or together", alone, at_once, rounds)


def features(folder: Path, device: Device, rounds: int) -> None:
    """Features by way of the host, or on the device. Without the cache of views, which would hold the page's."""
    page = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*PAGE[::-1], 3), np.uint8))
    opening: Any = model_module  # which looks the device up by a name of its own
    find, models = opening.find_device, []
    try:
        for resident in (False, True):
            there = replace(device, resident=resident)
            opening.find_device = lambda name, threads, there=there: there
            models.append(Model.open(folder, device=device.name, slots=1, vision_cache_mb=0, warm_up="none"))
        through, staying = (lambda model=model: model.read(page, max_new_tokens=1) for model in models)
        in_turns("first token of a page, features through the host or on the device", through, staying, rounds)
    finally:
        opening.find_device = find
        for model in models:
            model.close()


def candidates(folder: Path, device: Device, rounds: int) -> None:
    """64 candidates or 8, picked on the device also where the runtime would pick none."""
    manifest, usual, decoders = Manifest.load(folder), picker.CANDIDATES, []
    try:
        for count in (64, 8):
            picker.CANDIDATES = count
            decoders.append(Decoder(folder, manifest, replace(device, picks=True), max(ROWS)))
    finally:
        picker.CANDIDATES = usual
    for rows in ROWS:
        many, few = (lambda decoder=decoder, rows=rows: decoder.score([5] * rows, [200] * rows) for decoder in decoders)
        in_turns(f"a step of {rows} rows, 64 or 8 candidates", many, few, rounds)


PARTS = {"together": together, "features": features, "candidates": candidates}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--parts", default=",".join(PARTS), help="of %(default)s")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    for part in given.parts.split(","):
        PARTS[part](given.export, find_device(given.device, given.threads), given.rounds)


if __name__ == "__main__":
    main()
