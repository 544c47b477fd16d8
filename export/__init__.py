"""Turns a published checkpoint into a self-describing folder of ONNX graphs.

Nothing else imports this package: the server starts it as a program, ``python -m export MODEL_ID``. Downloads need the
``export`` extra; a local checkpoint, such as the built-in model's, needs only the base install.
"""

from __future__ import annotations

import os

# As in runtime/__init__.py: ONNX Runtime reads the variable on import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> str:
    """``__version__``, when it is asked for."""
    if name == "__version__":
        from models import __version__

        return __version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
