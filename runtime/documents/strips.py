"""A page's pixels go from the worker to its parent in strips of whole rows."""

from __future__ import annotations

STRIP_BYTES = 1 << 20  # bytes of pixels sent at once


def rows_of_a_strip(width: int) -> int:
    """Number of rows of an RGB image that are sent at once."""
    return max(1, STRIP_BYTES // (3 * width))
