"""Notices folders that hide this project's packages from ``python -m server``.

With -m, Python looks into the working directory first, where a folder of the same name may be another program's.
Imports nothing that could be hidden.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def refuse_hidden(*packages: str) -> None:
    """Exit with one line when a file or folder of the working directory hides one of this project's packages."""
    for name in packages:
        found = importlib.util.find_spec(name)
        place = Path(next(iter((found and found.submodule_search_locations) or [f"{name}.py"])))
        if place.parent != Path(__file__).resolve().parents[1]:
            sys.exit(f"error: {place} hides the package {name!r} of ocr-onnx; run `ocr-onnx`, or use another folder")
