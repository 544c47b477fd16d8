"""``ocr-onnx serve``: ``ocr-onnx-serve`` under its other name."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from . import cli

DESCRIPTION = cli.DESCRIPTION
EXAMPLES = cli.EXAMPLES.replace("ocr-onnx-serve", "ocr-onnx serve")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of the server."""
    cli.add_arguments(parser)


def run(given: Mapping[str, Any]) -> int:
    """Serve until a signal."""
    return cli.serve(dict(given), given["usage_error"])
