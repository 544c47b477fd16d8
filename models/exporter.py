"""The exporter as a program: callers start it to export a model, and never import it."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def command(*arguments: str) -> list[str]:
    """The command line of ``ocr-onnx export`` with these arguments."""
    # -P: a file named export.py in the working directory must not hide the exporter.
    return [sys.executable, "-P", "-m", "export", *arguments]


def environment() -> dict[str, str]:
    """The child's environment, in which it finds the same packages as this process, checkout or installed."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root, "PYTHONUNBUFFERED": "1"}
