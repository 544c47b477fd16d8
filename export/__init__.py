"""Turns a published checkpoint into a self-describing folder of ONNX graphs. Needs the ``export`` extra.

Nothing else imports this package: the server starts it as a program, ``python -m export MODEL_ID``.
"""

import os

# As in runtime/__init__.py: ONNX Runtime reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
