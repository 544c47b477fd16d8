"""``ocr-onnx serve``: ``ocr-onnx-serve`` under its other name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import cli
from .arguments import DESCRIPTION, add_arguments
from .arguments import EXAMPLES as PROGRAM_EXAMPLES

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "run"]

EXAMPLES = PROGRAM_EXAMPLES.replace("ocr-onnx-serve", "ocr-onnx serve")


def run(given: Mapping[str, Any]) -> int:
    """Serve until a signal."""
    return cli.serve(dict(given), given["usage_error"])
