"""``python -m server``: the same as ``ocr-onnx-serve``."""

import sys

from .cli import main

sys.exit(main())
