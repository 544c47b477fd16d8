"""A drawn page: its picture, with warnings and the turn that made it upright."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Drawn:
    """One page as it is read."""

    image: Image.Image  # upright, in RGB
    warnings: tuple[str, ...] = ()  # warnings, a line each, without the document's name
    truncated: bool = False  # the file breaks off; the picture has what was there
    dpi: float | None = None  # dots per inch of the picture, where the file tells a page's size in inches
    rotated: float = 0  # degrees clockwise by which the page was turned upright, beyond the file's own rotation
