"""Entry point of ``python -m export``."""

import importlib.util
import sys
from pathlib import Path

# Run as a module, Python looks into the working directory first, where "models" may be another program's folder.
found = importlib.util.find_spec("models")
place = Path(next(iter((found and found.submodule_search_locations) or ["models.py"])))
if place.parent != Path(__file__).resolve().parents[1]:
    sys.exit(f"error: {place} hides the package 'models' of ocr-onnx; run `ocr-onnx export`, or use another folder")

from .cli import main  # noqa: E402 - first a check for modules that would hide ours

sys.exit(main())
