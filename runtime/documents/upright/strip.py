"""The network that tells which way up a strip of a line is: PaddlePaddle's ch_ppocr_mobile_v2.0_cls, in ONNX Runtime.

The file is PaddlePaddle's, as the package rapidocr 3.10.0 brings it in ONNX form, byte for byte, under the Apache
License 2.0 (``strip.NOTICE``). The network was trained on lines of photographed and drawn text and is surer about worn
digits than the smaller one of pieces (``piece``), but knows no strip that is no line, and is as sure of lines that
are on their sides.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .networks import session

NETWORK = Path(__file__).with_name("strip.onnx")


def upright_probabilities(strips: np.ndarray) -> np.ndarray:
    """Probabilities that strips stand, rather than are on their heads, shape [n].

    strips : shape [n, 48, 192], float32 from 0 (paper) to 1.
    """
    if not len(strips):
        return np.zeros(0, np.float32)
    inputs = np.repeat((1 - 2 * strips)[:, None], 3, 1).astype(np.float32)
    (found,) = session(NETWORK).run(None, {"x": inputs})
    return np.asarray(found, np.float32)[:, 0]
