"""The network that classifies pieces of lines: upright, on their head, or no line. Run by ONNX Runtime.

``tools.train_upright`` trains the network and writes the file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .networks import session

NETWORK = Path(__file__).with_name("piece.onnx")
UP, DOWN, OTHER = range(3)  # its classes


def probabilities(pieces: np.ndarray) -> np.ndarray:
    """Probabilities of the classes, shape [n, 3]. pieces : shape [n, height, width], float32 from 0 (paper) to 1."""
    if not len(pieces):
        return np.zeros((0, 3), np.float32)
    (found,) = session(NETWORK).run(None, {"pieces": np.ascontiguousarray(pieces)})
    return np.asarray(found, np.float32)
