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
STRIP_HEIGHT, STRIP_WIDTH = 48, 192  # pixels of a strip, which is as high a part of the page and shorter
CORE = 9  # of its height that most letters fill

_LONG_SIDE = 1600  # pixels of the page that is looked at; larger ones are reduced to this
_CORES = (4, 64)  # of that page: heights of what counts as a line
_STEP = 100  # pixels across after which lines are looked for anew: a page may have columns, and lie askew
_PAPER = 16  # pixels within which the paper's brightness hardly changes
_DARK = 110  # of 255: a page whose middle brightness is lower is light on dark
_LEAST_CONTRAST = 40  # between ink and paper, of 255; less is taken for an empty page
_NEAR, _FAINTEST = 32, 0.3  # pixels of a place with a contrast of its own; the least of that, of the page's
_INK = 0.4  # how dark is ink
_LEAST_INK_WIDTH = 0.45  # of a piece's width that has ink in its core
_FILLED = (0.08, 0.75)  # the share of a core that is ink
_WIDEST_GAP = 40  # pixels of a strip between words; there is more between columns
_RULE, _RULE_THICKNESS = 36, 6  # pixels of the page: the least length of a rule, and what is too thick for one


Place = tuple[int, int, int]
"""Where a piece begins on the page: its left edge, top and bottom of its core, in pixels of the page's ink."""


def ink_of(page: Image.Image, long_side: int = _LONG_SIDE) -> np.ndarray:
    """How dark a page is against its paper, shape [height, width], float32 from 0 to 1; reduced to a common size."""
    grey = page.convert("L")
    factor = max(grey.size) / long_side
    if factor > 1:
        size = max(1, round(grey.width / factor)), max(1, round(grey.height / factor))
        grey = grey.resize(size, Image.Resampling.BOX)
    small = grey.reduce(min(_PAPER, *grey.size))
    if np.median(np.asarray(small)) < _DARK:
        grey = ImageChops.invert(grey)
    # The brightest near a place is its paper: shadows and the darkening of a photograph go away with it.
    bright = grey.reduce(min(_PAPER // 2, *grey.size)).filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.BoxBlur(2))
    darker = np.asarray(ImageChops.subtract(bright.resize(grey.size, Image.Resampling.BILINEAR), grey))
    height, width = darker.shape
    inner = darker[height // 10 : height - height // 10, width // 10 : width - width // 10]
    contrast = _contrast(inner)  # without the table at the edges of a photograph, which is darker than grey print
    if contrast < _LEAST_CONTRAST:
        contrast = _contrast(darker)
    if contrast < _LEAST_CONTRAST:
        return np.zeros(darker.shape, np.float32)
    return np.asarray(np.minimum(darker / _contrast_near(darker, contrast), 1), np.float32)


def _contrast(darker: np.ndarray) -> int:
    """What few of the pixels are darker than, which is ink."""
    counts = np.bincount(darker[::2, ::2].ravel(), minlength=256)
    return int(np.searchsorted(np.cumsum(counts), 0.995 * counts.sum()))


def _contrast_near(darker: np.ndarray, contrast: int) -> np.ndarray:
    """What the darkest near each place is darker by than its paper, float32: print is fainter than a picture beside it.

    contrast : of the whole page, which bounds the result.
    """
    height, width = darker.shape
    rows = np.maximum.reduceat(darker, np.arange(0, height, _NEAR), 0)
    darkest = Image.fromarray(np.maximum.reduceat(rows, np.arange(0, width, _NEAR), 1)).filter(ImageFilter.MaxFilter(3))
    near = np.asarray(darkest.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    return np.clip(near, max(_LEAST_CONTRAST, _FAINTEST * contrast), contrast)


def pieces(ink: np.ndarray, most: int) -> np.ndarray:
    """At most so many pieces of what may be lines that run across, from all over the page, shape [n, 24, 144]."""
    found = _evenly(_apart(_places(ink)), most)
    if not found:
        return np.zeros((0, HEIGHT, WIDTH), np.float32)
    page = as_picture(ink)
    cut = np.stack([_cut(page, place, (WIDTH, HEIGHT)) for place in found])
    return np.asarray(cut[_written(cut)], np.float32) / 255


def strips(ink: np.ndarray, most: int) -> np.ndarray:
    """At most so many words or beginnings of what may be lines that run across, shape [n, 48, 192], float32.

    Values are 0 (paper) to 1; a half, grey, fills strips behind short words.
    """
    page, found = as_picture(ink), []
    for place in _evenly(_apart(_places(ink)), most):
        strip = np.asarray(_cut(page, place, (STRIP_WIDTH, STRIP_HEIGHT)), np.float32) / 255
        if (width := _written_width(strip)) >= STRIP_HEIGHT:
            strip[:, width:] = 0.5
            found.append(strip)
    return np.stack(found) if found else np.zeros((0, STRIP_HEIGHT, STRIP_WIDTH), np.float32)


def without_rules(ink: np.ndarray) -> np.ndarray:
    """The page without the thin lines of tables and forms, which are longer than any stroke of a letter."""
    dark = ink > _INK
    rules = np.zeros_like(dark)
    for axis in (0, 1):
        long = _opened(dark, _RULE, axis)
        if long.any():
            rules |= long & ~_opened(dark, _RULE_THICKNESS, 1 - axis)
    return np.where(rules, np.float32(0), ink)


def _opened(dark: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Which pixels belong to a run of dark ones along an axis that has at least this length."""
    opened = np.zeros_like(dark)
    if dark.shape[axis] < length:
        return opened
    starts, kept = np.moveaxis(dark, axis, 0), np.moveaxis(opened, axis, 0)
    covered = 1  # pixels: `starts` says where runs of that length begin
    while covered < length:
        step = min(covered, length - covered)
        starts = starts[: len(starts) - step] & starts[step:]
        covered += step
    if starts.any():
        for shift in range(length):
            kept[shift : shift + len(starts)] |= starts
    return opened


def _places(ink: np.ndarray) -> Iterator[Place]:
    """Where lines are."""
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


def _apart(places: Iterator[Place]) -> list[Place]:
    """Those that are not within an earlier one's piece, from top to bottom."""
    kept: list[Place] = []
    ends: dict[int, int] = {}  # row of 8 pixels -> where the last piece there ends
    for left, top, bottom in places:
        rows = range(top // 8, (bottom - 1) // 8 + 1)
        if all(ends.get(row, 0) <= left for row in rows):
            end = left + (bottom - top) * WIDTH // CORE * 3 // 4
            ends.update(dict.fromkeys(rows, end))
            kept.append((left, top, bottom))
    return sorted(kept, key=lambda place: place[1])


def as_picture(ink: np.ndarray) -> Image.Image:
    """The ink of a page, dark as white."""
    return Image.fromarray((ink * 255).astype(np.uint8))


def _evenly(places: list[Place], most: int) -> list[Place]:
    """At most so many of them, from all over the page."""
    if len(places) <= most:
        return places
    return [places[int(number)] for number in np.linspace(0, len(places) - 1, most)]


def _cut(page: Image.Image, place: Place, size: tuple[int, int]) -> np.ndarray:
    """The part of the page that begins at a place and is as high as a piece, in ``size``: pixels across and down."""
    left, top, bottom = place
    high = (bottom - top) * HEIGHT / CORE
    upper = (top + bottom - high) / 2
    return np.asarray(_within(page, (left, upper, left + high * size[0] / size[1], upper + high), size), np.uint8)


def _within(page: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
    """What is in a box, which may reach over the page's edges, in ``size``."""
    left, top, right, bottom = (round(value) for value in box)
    inner = page.crop(
        (left, top, max(right, left + 1), max(bottom, top + 1))
    )  # black, which is paper, beyond the edges
    return inner.resize(size, Image.Resampling.BOX if inner.width > size[0] else Image.Resampling.BILINEAR)


def _written(cut: np.ndarray) -> np.ndarray:
    """Which pieces have the ink of a line in their core, shape [n], bool."""
    start = (HEIGHT - CORE) // 2
    core = cut[:, start : start + CORE] > 255 * _INK
    wide = core.any(1).mean(1)
    filled = core.mean((1, 2))
    return np.asarray((wide >= _LEAST_INK_WIDTH) & (filled >= _FILLED[0]) & (filled <= _FILLED[1]))


def _written_width(strip: np.ndarray) -> int:
    """Where the ink of a strip's core ends, or the first gap that is wider than one between words; 0 for no text."""
    start = (STRIP_HEIGHT - CORE * STRIP_HEIGHT // HEIGHT) // 2
    core = strip[start : STRIP_HEIGHT - start] > _INK
    inked = np.flatnonzero(core.any(0))
    if not len(inked) or not _FILLED[0] <= core.mean() * STRIP_WIDTH / (inked[-1] + 1) <= _FILLED[1]:
        return 0
    gaps = np.flatnonzero(np.diff(inked) > _WIDEST_GAP)
    return int(inked[gaps[0]] if len(gaps) else inked[-1]) + 1
