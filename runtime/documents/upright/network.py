"""The network that classifies pieces of lines: upright, on their head, or no line. Computed in NumPy.

``tools.train_upright`` trains the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

WEIGHTS = Path(__file__).with_name("weights.npz")
UP, DOWN, OTHER = range(3)  # its classes

Weights = Mapping[str, np.ndarray]


def probabilities(pieces: np.ndarray) -> np.ndarray:
    """Probabilities of the classes, shape [n, 3]. pieces : shape [n, height, width], float32 from 0 (paper) to 1."""
    if not len(pieces):
        return np.zeros((0, 3), np.float32)
    scores = forward(weights(), pieces)
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


@cache
def weights() -> Weights:
    """The trained weights, by name."""
    with np.load(WEIGHTS) as file:
        return {name: file[name].astype(np.float32) for name in file.files}


def forward(weights: Weights, pieces: np.ndarray) -> np.ndarray:
    """Scores of the classes, shape [n, 3]: three convolutions, the mean over a piece's length, two layers."""
    values = pieces[..., None]
    for layer in ("conv1", "conv2", "conv3"):
        values = _convolved(values, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
    rows = values.mean(2).transpose(0, 2, 1).reshape(len(values), -1)  # a shape's place along the line does not matter
    hidden = np.maximum(rows @ weights["hidden.weight"].T + weights["hidden.bias"], 0)
    return np.asarray(hidden @ weights["out.weight"].T + weights["out.bias"])


def _convolved(values: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A convolution of stride 2, half the kernel as padding, then ReLU. values : [n, height, width, channels]."""
    size = kernel.shape[-1]
    pad = size // 2
    padded = np.pad(values, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))[:, ::2, ::2]
    count, height, width = windows.shape[:3]
    flat = windows.reshape(count * height * width, -1)  # of each place: channels, rows, columns, as the kernel has them
    result = flat @ kernel.reshape(len(kernel), -1).T + bias
    return np.asarray(np.maximum(result, 0).reshape(count, height, width, len(kernel)))
