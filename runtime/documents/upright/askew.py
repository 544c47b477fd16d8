"""The angles by which lines of a page lean: where neighbouring rows of pixels differ most.

When lines run straight across, rows of pixels through lines are dark and rows between lines are light; at other angles
rows are grey. Angles are tried on the page's projection, in strips that are shifted against each other, as by Postl (US
patent 4,723,297, 1988) and others since.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from .lines import as_picture

_INK = 0.4  # how dark is ink, see lines
_MOST_ROWS = 800  # that are looked at; rows of larger pages are taken together
_STRIPS = 40
_MOST = 8.0  # degrees, to each side
_STEP, _FINE_STEP = 0.5, 0.1
_LEAST_CLEAR = 1.35  # times as unlike as at an ordinary angle; less is no page of lines
_LEAST_GAIN = 1.08  # times as unlike as they are without a turn
_LEAST_LEANING = 0.5  # degrees; pieces of lines that lean less are as good as level ones
_MOST_APART = 5.0  # degrees between the halves of a page that was photographed from aside
_LEAST_HALF = 100  # pixels that show how lines lean


def degrees_to_straight(ink: np.ndarray) -> float:
    """Degrees clockwise by which to turn an upright page for its lines to run straight across.

    ink : shape [height, width], 0 to 1, see ``lines.ink_of``. Returns 0 where no angle stands out.
    """
    sums, middles = _strips(ink)
    coarse = np.arange(-_MOST, _MOST + _STEP / 2, _STEP)
    found = np.array([_unlike(sums, middles, angle) for angle in coarse])
    best = int(found.argmax())
    if best in (0, len(coarse) - 1) or found[best] < _LEAST_CLEAR * max(1e-6, float(np.median(found))):
        return 0.0
    fine = np.arange(coarse[best] - _STEP, coarse[best] + _STEP + _FINE_STEP / 2, _FINE_STEP)
    finer = np.array([_unlike(sums, middles, angle) for angle in fine])
    if finer.max() < _LEAST_GAIN * _unlike(sums, middles, 0.0):
        return 0.0
    return round(float(fine[finer.argmax()]), 2)


def levelled(ink: np.ndarray, degrees: float) -> np.ndarray:
    """The ink of a page, with the lines of its upper half and those of its lower half made to run straight across.

    On a photograph taken from aside the halves lean differently. degrees : by which all of it would be turned, taken
    for a half without an angle of its own, see ``degrees_to_straight``.
    """
    height, width = ink.shape
    if height < 2 * _LEAST_HALF:
        return ink
    halves = (ink[: height // 2], ink[height // 2 :])
    above, below = (degrees_to_straight(half) or degrees for half in halves)
    if abs(above - below) > _MOST_APART:
        above = below = degrees
    top, bottom = above + (above - below) / 2, below + (below - above) / 2  # at the page's edges
    if max(abs(top), abs(bottom)) < _LEAST_LEANING:
        return ink
    first, last = (math.tan(math.radians(angle)) * width / 2 for angle in (top, bottom))
    corners = (0, first, 0, height + last, width, height - last, width, -first)
    page = as_picture(ink).transform((width, height), Image.Transform.QUAD, corners, Image.Resampling.BILINEAR)
    return np.asarray(page, np.float32) / 255


def _strips(ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ink of each row of each strip, shape [strips, rows], and each strip's distance from the page's middle."""
    taken = -(-max(ink.shape) // _MOST_ROWS)
    height, width = (side // taken * taken for side in ink.shape)
    dark = (ink[:height, :width] > _INK).reshape(height // taken, taken, width).sum(1, dtype=np.float32)
    edges = np.linspace(0, width, min(_STRIPS, max(1, width // 8)) + 1).astype(int)
    sums = np.add.reduceat(dark, edges[:-1], axis=1).T
    return np.ascontiguousarray(sums), (edges[:-1] + edges[1:] - width) / 2 / taken


def _unlike(sums: np.ndarray, middles: np.ndarray, degrees: float) -> float:
    """The difference of neighbouring rows of the turned page: the sum of squared differences."""
    rows = sums.shape[1]
    # Turned clockwise, what is on the right comes down: a row takes there what has been further up.
    shifts = np.rint(-math.tan(math.radians(degrees)) * middles).astype(int)
    places = np.arange(rows)[None] + shifts[:, None]
    there = (places >= 0) & (places < rows)
    shifted = np.take_along_axis(sums, np.clip(places, 0, rows - 1), 1) * there
    return float(np.square(np.diff(shifted.sum(0))).sum())
