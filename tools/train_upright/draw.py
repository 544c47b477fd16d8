"""Draws pages and cuts them as the product does: the pieces that the network is trained on."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from runtime.documents.upright.lines import ink_of, pieces
from runtime.documents.upright.piece import OTHER, UP

from . import pages, scripts

_SCRIPTS = {
    "Latin": 50,
    "Cyrillic": 9,
    "Greek": 4,
    "Chinese": 10,
    "Japanese": 6,
    "Korean": 6,
    "foreign": 24,
    "picture": 8,
}
_CONFUSED = {
    "Tamil": 5,
    "Hebrew": 3,
}  # weights of scripts whose letters look like Latin ones that are turned; others: 1
_KINDS = {"text": 36, "columns": 15, "table": 22, "capitals": 10, "digits": 7}
_WEAR = {"clean": 30, "degraded": 45, "photographed": 25}
_VERTICAL = 0.2  # of the Chinese and Japanese pages
_MOST = 45  # pieces of one page, and of it lying
_MOST_LYING = 15
_PART = 250  # pages that are drawn with one seed


def drawn(page_count: int, seed: int, folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """As ``draw``, in parts, which are kept in ``folder`` and taken from there."""
    parts = []
    for number in range(-(-page_count // _PART)):
        kept = folder / f"{seed}-{number}.npz" if folder else None
        if kept is None or not kept.exists():
            part = draw(_PART, seed * 1000 + number)
            if kept is not None:
                np.savez_compressed(kept, cut=part[0], kinds=part[1])
        else:
            with np.load(kept) as file:
                part = file["cut"], file["kinds"]
        parts.append(part)
    return np.concatenate([cut for cut, _ in parts]), np.concatenate([kinds for _, kinds in parts])


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of so many pages, shape [n, height, width], uint8, and their classes: UP or OTHER."""
    rng = random.Random(seed)
    cut: list[np.ndarray] = []
    kinds: list[np.ndarray] = []

    def add(found: np.ndarray, kind: int) -> None:
        cut.append((found * 255).astype(np.uint8))
        kinds.append(np.full(len(found), kind))

    for _ in range(count):
        script = rng.choices(list(_SCRIPTS), list(_SCRIPTS.values()))[0]
        if script == "picture":
            ink = ink_of(pages.picture(rng, *rng.choice(pages.SMALL)))
            add(pieces(ink, _MOST), OTHER)
            continue
        how = rng.choices(list(_WEAR), list(_WEAR.values()))[0]
        kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
        if script == "foreign":
            there = [one for one in scripts.FOREIGN if scripts.faces(one, held_out=False)]
            script = rng.choices(there, [_CONFUSED.get(one, 1) for one in there])[0]
        elif script in ("Chinese", "Japanese") and rng.random() < _VERTICAL:
            kind = "vertical"
        ink = ink_of(pages.page(rng, kind, script, how, held_out=False, sizes=pages.SMALL))
        stands = script in scripts.KNOWN and kind != "vertical"
        add(pieces(ink, _MOST), UP if stands else OTHER)
        most = _MOST if kind == "vertical" else _MOST_LYING
        add(pieces(np.ascontiguousarray(np.rot90(ink)), most), OTHER)
    return np.concatenate(cut), np.concatenate(kinds)
