"""Networks, run by ONNX Runtime as their files are."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any


@cache
def session(network: Path) -> Any:
    """One thread, on the CPU: several processes draw pages, and each looks at its own page."""
    from runtime.providers import ort  # late: a process that turns no pages saves the 60 MB of ONNX Runtime

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(network), options, ["CPUExecutionProvider"])
