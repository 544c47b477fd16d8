"""``python -m server.command``: the same as ``ocr-onnx``."""

import sys

from server.hidden import refuse_hidden

refuse_hidden("models", "runtime")

from .main import main  # noqa: E402 - what would hide the imported packages is looked for first

sys.exit(main())
