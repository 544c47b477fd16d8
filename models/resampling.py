"""Matrices that resize a table along one axis, as ``torch.nn.functional.interpolate`` does (align_corners=False).

Interpolation is a linear map, so a family computes its matrix for a size and the graph applies it.
"""

from __future__ import annotations

import numpy as np


def linear_rows(source: int, target: int) -> np.ndarray:
    """[target, source]: linear interpolation without antialiasing."""
    centres = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0.0)
    low = centres.astype(np.int64)
    high = np.minimum(low + 1, source - 1)
    fraction = centres - low
    weights = np.zeros((target, source))
    rows = np.arange(target)
    weights[rows, low] += 1.0 - fraction
    weights[rows, high] += fraction
    return weights.astype(np.float32)
