"""Pieces of text lines, cut out of a page in the direction in which it is looked at, all in one size.

A piece shows about fifteen letters, scaled so that what most letters fill of a line's height (of Latin the height of
an x) is always as high and stands in the middle: turned by half, a piece is one again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageChops, ImageFilter

HEIGHT, WIDTH = 24, 144  # pixels of a piece
CORE = 9  # of its height that most letters fill

_LONG_SIDE = 1600  # pixels of the page that is looked at; larger ones are reduced to this
_CORES = (4, 64)  # of that page: heights of what counts as a line
_STEP = 100  # pixels across after which lines are looked for anew: a page may have columns, and lie askew
_PAPER = 16  # pixels within which the paper's brightness hardly changes
_DARK = 110  # of 255: a page whose middle brightness is lower is light on dark
_LEAST_CONTRAST = 40  # between ink and paper, of 255; less is taken for an empty page
_INK = 0.4  # how dark is ink
_LEAST_INK_WIDTH = 0.45  # of a piece's width that has ink in its core
_FILLED = (0.08, 0.75)  # the share of a core that is ink


def ink_of(page: Image.Image) -> np.ndarray:
    """How dark a page is against its paper, shape [height, width], float32 from 0 to 1; reduced to a common size."""
    grey = page.convert("L")
    factor = max(grey.size) / _LONG_SIDE
    if factor > 1:
        size = max(1, round(grey.width / factor)), max(1, round(grey.height / factor))
        grey = grey.resize(size, Image.Resampling.BOX)
    small = grey.reduce(min(_PAPER, *grey.size))
    if np.median(np.asarray(small)) < _DARK:
        grey = ImageChops.invert(grey)
    # The brightest near a place is its paper: shadows and the darkening of a photograph go away with it.
    bright = grey.reduce(min(_PAPER // 2, *grey.size)).filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.BoxBlur(2))
    darker = np.asarray(ImageChops.subtract(bright.resize(grey.size, Image.Resampling.BILINEAR), grey))
    # What few of the pixels are darker than is ink.
    counts = np.bincount(darker[::2, ::2].ravel(), minlength=256)
    contrast = int(np.searchsorted(np.cumsum(counts), 0.995 * counts.sum()))
    if contrast < _LEAST_CONTRAST:
        return np.zeros(darker.shape, np.float32)
    return np.asarray(np.minimum(darker, contrast) * np.float32(1 / contrast), np.float32)


def pieces(ink: np.ndarray, most: int) -> np.ndarray:
    """At most so many pieces of what may be lines that run across, from all over the page, shape [n, 24, 144]."""
    found = _apart(_places(ink))
    if len(found) > most:
        found = [found[int(place)] for place in np.linspace(0, len(found) - 1, most)]
    if not found:
        return np.zeros((0, HEIGHT, WIDTH), np.float32)
    page = Image.fromarray((ink * 255).astype(np.uint8))
    cut = np.stack([_cut(page, *place) for place in found])
    return np.asarray(cut[_written(cut)], np.float32) / 255


def _places(ink: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Left edge, top and bottom of the cores of lines."""
    height, width = ink.shape
    dark = ink > _INK
    count = max(1, round(width / _STEP))
    edges = np.linspace(0, width, count + 1).astype(int)
    for left, right in itertools.pairwise(edges):
        amount = dark[:, left:right].sum(1).astype(np.float32)
        if height > 4:
            amount[1:-1] = (amount[:-2] + 2 * amount[1:-1] + amount[2:]) / 4
        inked = amount[amount >= 2]
        if len(inked) < _CORES[0]:
            continue
        # A line's core is darker than what stands out of it: ascenders, descenders, accents.
        around = _greatest_near(amount, 24)
        rows = (amount >= 2) & (amount > 0.45 * np.minimum(around, np.percentile(inked, 90)))
        changes = np.flatnonzero(np.diff(np.concatenate(([False], rows, [False])).astype(np.int8)))
        for top, bottom in zip(changes[::2], changes[1::2], strict=True):
            if _CORES[0] <= bottom - top <= _CORES[1]:
                yield int(left), int(top), int(bottom)


def _greatest_near(values: np.ndarray, reach: int) -> np.ndarray:
    """The greatest value within ``reach`` of each place."""
    padded = np.pad(values, reach)
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(1))


def _apart(places: Iterator[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Those that are not within an earlier one's piece, from top to bottom."""
    kept: list[tuple[int, int, int]] = []
    ends: dict[int, int] = {}  # row of 8 pixels -> where the last piece there ends
    for left, top, bottom in places:
        rows = range(top // 8, (bottom - 1) // 8 + 1)
        if all(ends.get(row, 0) <= left for row in rows):
            end = left + (bottom - top) * WIDTH // CORE * 3 // 4
            ends.update(dict.fromkeys(rows, end))
            kept.append((left, top, bottom))
    return sorted(kept, key=lambda place: place[1])


def _cut(page: Image.Image, left: int, top: int, bottom: int) -> np.ndarray:
    scale = (bottom - top) / CORE
    middle, half = (top + bottom) / 2, HEIGHT * scale / 2
    box = (left, middle - half, left + WIDTH * scale, middle + half)
    return np.asarray(_within(page, box), np.uint8)


def _within(page: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """What is in a box, which may reach over the page's edges, in the size of a piece."""
    left, top, right, bottom = (round(value) for value in box)
    inner = page.crop(
        (left, top, max(right, left + 1), max(bottom, top + 1))
    )  # black, which is paper, beyond the edges
    return inner.resize((WIDTH, HEIGHT), Image.Resampling.BOX if inner.width > WIDTH else Image.Resampling.BILINEAR)


def _written(cut: np.ndarray) -> np.ndarray:
    """Which pieces have the ink of a line in their core, shape [n], bool."""
    start = (HEIGHT - CORE) // 2
    core = cut[:, start : start + CORE] > 255 * _INK
    wide = core.any(1).mean(1)
    filled = core.mean((1, 2))
    return np.asarray((wide >= _LEAST_INK_WIDTH) & (filled >= _FILLED[0]) & (filled <= _FILLED[1]))
