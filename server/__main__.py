"""``python -m server``: the same as ``ocr-onnx-serve``."""

import sys

from .hidden import refuse_hidden

refuse_hidden("models", "runtime")

from .http.cli import main  # noqa: E402 - first a check for modules that would hide ours

sys.exit(main())
