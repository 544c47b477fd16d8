"""Serving and command line: HTTP API, ``ocr-onnx``, writers, scores, Ray. No tensors here."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    """Compute ``__version__`` on first use."""
    if name == "__version__":
        from models import __version__

        return __version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
