"""Resizes a page for the detector, as in training: OpenCV's ``INTER_CUBIC``.

OpenCV's kernel has four taps (a = -0.75) at any scale, without antialiasing. Pillow's BICUBIC widens the kernel when it
reduces a picture, and is 9 grey levels off in the mean on a page of print.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

_A = -0.75  # OpenCV's and PyTorch's
_TAPS = (-1, 0, 1, 2)


def pixel_values(page: Image.Image, height: int, width: int) -> np.ndarray:
    """[1, 3, height, width] float32, 0..1, of a page in RGB; the sides' ratio is not kept."""
    levels = resize_cubic(np.asarray(page), height, width)
    return np.asarray(np.ascontiguousarray(levels.transpose(2, 0, 1)[None], np.float32) / np.float32(255))


def resize_cubic(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """[h, w, 3] bytes -> [height, width, 3] bytes; rounded once, at the end."""
    rows = _along(pixels, height, axis=0)
    return np.asarray(np.clip(np.rint(_along(rows, width, axis=1)), 0, 255), np.uint8)


def _along(pixels: np.ndarray, target: int, axis: int) -> np.ndarray:
    """Interpolate one axis; pixels beyond an edge are the edge's."""
    source = pixels.shape[axis]
    centres = (np.arange(target) + 0.5) * (source / target) - 0.5
    first = np.floor(centres).astype(np.int64)
    beyond = centres - first
    shape = [1] * pixels.ndim
    shape[axis] = target
    taps: Iterator[np.ndarray] = (
        np.take(pixels, np.clip(first + tap, 0, source - 1), axis=axis)
        * _weight(np.abs(beyond - tap)).astype(np.float32).reshape(shape)
        for tap in _TAPS
    )
    total = next(taps)
    for tap in taps:
        total += tap
    return total


def _weight(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel at distances from a pixel's centre, 0..2."""
    near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
    far = ((_A * distance - 5 * _A) * distance + 8 * _A) * distance - 4 * _A
    return np.asarray(np.where(distance <= 1, near, np.where(distance < 2, far, 0)))
