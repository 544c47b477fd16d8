"""The matrices that fit the model's position tables to a view's size.

Interpolation along one axis is a linear map, so each table is resized in the graph by products with the matrices made
here. They reproduce ``torch.nn.functional.interpolate``: bicubic with antialiasing for SAM's and CLIP's tables, linear
for SAM's relative tables (align_corners=False throughout).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from models.family import Feeds, kept
from models.resampling import linear_rows

from .images import ImageRules

_CUBIC = -0.5  # Keys' parameter; PyTorch uses -0.5 with antialiasing (as Pillow does), -0.75 without


@lru_cache(maxsize=8)
def view_inputs(side: int, rules: ImageRules) -> Feeds:
    """Inputs of the vision graph beside the pixels, for views of ``side`` pixels (see export.deepseek_vision)."""
    return kept(
        {
            **sam_inputs(side // rules.patch_size, rules.grid, rules.window),
            "clip_rows": bicubic_rows(rules.clip_grid, rules.tokens_per_side(side)),
        }
    )


def sam_inputs(side: int, grid: int, window: int) -> Feeds:
    """SAM's inputs for a view of ``side`` patches (see export.sam_vision, and export.sam_cuda for windows and shapes).

    grid : side of its position table. window : side of a window.
    """
    index = np.arange(side)[:, None] - np.arange(side)[None, :] + side - 1
    return {
        "sam_rows": bicubic_rows(grid, side),
        "relative_rows": linear_rows(2 * grid - 1, 2 * side - 1),
        "relative_index": index.astype(np.int64),
        "places": places(side),
        **window_inputs(side, window),
        "square_shape": np.array([0, side, side, -1]),
        "split_shape": np.array([0, side, side, -1, side]),
        "join_shape": np.array([0, side * side, -1, side]),
    }


def window_inputs(side: int, window: int) -> Feeds:
    """The patch at each place of the windows that cover ``side`` x ``side`` patches, row by row."""
    count = -(-side // window)
    patch = np.full((count * window, count * window), -1)
    patch[:side, :side] = np.arange(side * side).reshape(side, side)
    places = patch.reshape(count, window, count, window).transpose(0, 2, 1, 3).ravel()
    filled = places >= 0
    inverse = np.empty(side * side, np.int64)
    inverse[places[filled]] = np.flatnonzero(filled)
    return {
        "window_index": np.where(filled, places, 0),
        "window_filled": filled.astype(np.float32)[:, None],
        "window_inverse": inverse,
        "window_shape": np.array([-1, len(places), 0]),
    }


def places(side: int) -> np.ndarray:
    """[side * side, 2 side]: the patch at (r, c) has ones at r and at side + c."""
    eye = np.eye(side, dtype=np.float32)
    return np.concatenate([np.repeat(eye, side, axis=0), np.tile(eye, (side, 1))], axis=1)


def bicubic_rows(source: int, target: int) -> np.ndarray:
    """[target, source]: antialiased bicubic resampling, the weights of each output summing to 1."""
    scale = source / target
    stretch = max(scale, 1.0)
    centres = scale * (np.arange(target) + 0.5)
    first = np.maximum((centres - 2 * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + 2 * stretch + 0.5).astype(np.int64), source)
    positions = np.arange(source)
    weights = _cubic((positions[None, :] - centres[:, None] + 0.5) / stretch)
    weights[(positions < first[:, None]) | (positions >= last[:, None])] = 0.0
    rows: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return rows.astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel (IEEE ASSP 29, 1981)."""
    x = np.abs(x)
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = _CUBIC * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
