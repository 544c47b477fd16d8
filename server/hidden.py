"""What may stand in the way of ``python -m server``.

Run as a module, Python looks into the working directory first, and a folder there of the same name is another
program's. Imports nothing that could be hidden.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def refuse_hidden(*packages: str) -> None:
    """Exit with one line when a file of the working directory stands in for one of this project's packages."""
    for name in packages:
        found = importlib.util.find_spec(name)
        place = Path(next(iter((found and found.submodule_search_locations) or [f"{name}.py"])))
        if place.parent != Path(__file__).resolve().parents[1]:
            sys.exit(f"error: {place} hides the package {name!r} of ocr-onnx; run `ocr-onnx`, or use another folder")
