"""``python -m server.command``: the same as ``ocr-onnx``."""

import sys

from server.hidden import refuse_hidden

refuse_hidden("models", "runtime")

from .main import main  # noqa: E402 - first a check for modules that would hide ours

sys.exit(main())
