"""A drawn page: its picture, and what must be said of it."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Drawn:
    """One page as it is read."""

    image: Image.Image  # upright, in RGB
    warnings: tuple[str, ...] = ()  # what may be wrong with it, in a line each, without the document's name
    truncated: bool = False  # a part of the file is missing, and of the page what was there
    rotated: float = 0  # degrees clockwise by which it was turned to stand upright, beside what its file says
