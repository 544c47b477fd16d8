"""The OpenAI-compatible HTTP API on Falcon and waitress. No tensors here."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    """``__version__``, when it is asked for."""
    if name == "__version__":
        from models import __version__

        return __version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
