"""How the pixels of a page go from the process that draws to the one that asked: in strips of whole rows."""

from __future__ import annotations

STRIP_BYTES = 1 << 20  # of pixels that are sent at once


def rows_of_a_strip(width: int) -> int:
    """How many rows of an RGB image are sent at once."""
    return max(1, STRIP_BYTES // (3 * width))
