"""``python -m server.command``: the same as ``ocr-onnx``."""

import sys

from .main import main

sys.exit(main())
