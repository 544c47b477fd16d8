"""Runs an exported folder: images and a prompt in, text out. ONNX Runtime, tokenizers and NumPy; never torch.

from runtime import Model

with Model.open("tiny-ocr") as model:
    print(model.read("page.png", "<image>\\nFree OCR.").text)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime 1.31 keeps a device id and a database of events in the user's cache folder, unless this is set before the
# import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Model"]


def __getattr__(name: str) -> Any:
    """Import ``Model`` on first use, so that requests and errors can be imported without ONNX Runtime."""
    if name == "Model":
        from .model import Model

        return Model
    if name == "__version__":
        from models import __version__

        return __version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
