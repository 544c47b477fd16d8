"""What writers ask for beside the text: the page's picture, the figures on it, the document itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from models.blocks import figures_of
from models.turned import turned

from .figures import as_jpeg, cut_out
from .result import PageResult


@dataclass(frozen=True)
class Original:
    """The document as it came."""

    content: Path | bytes
    password: str = ""


class Material(Protocol):
    """Of one document. Nothing is had before it is asked for."""

    def picture(self, page: int) -> Image.Image:
        """The page, numbered from 1, as it came: drawn once more, so that no picture waits for the others.

        Raises
        ------
        models.model_errors.InvalidInput
            when it cannot be drawn any more.
        runtime.documents.Stopped
            when the user wants an end.
        """

    def original(self) -> Original:
        """The document as it came."""


def figure_pictures(result: PageResult, material: Material) -> Sequence[bytes]:
    """The figures of a page as JPEG, in the order in which its Markdown links them. Raises as ``Material.picture``."""
    boxes = figures_of(result.boxes, result.text)
    page = turned(material.picture(result.page), result.rotated) if boxes else None
    return [as_jpeg(cut_out(page, box)) for box in boxes] if page else []
