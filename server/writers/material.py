"""Material for writers beside the text: pages' pictures, figures, the document itself."""

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
    """The original document."""

    content: Path | bytes
    password: str = ""


class Material(Protocol):
    """Material of one document, made on demand."""

    def picture(self, page: int) -> Image.Image:
        """The unturned picture of a page, numbered from 1: drawn again, so that pictures are not kept in memory.

        Raises
        ------
        models.model_errors.InvalidInput
            when the page cannot be drawn any more.
        runtime.documents.Stopped
            when the user wants an end.
        """

    def original(self) -> Original:
        """The original document."""


def figure_pictures(result: PageResult, material: Material) -> Sequence[bytes]:
    """The figures of a page as JPEG, in the order of the Markdown's links. Raises as ``Material.picture``."""
    boxes = figures_of(result.boxes, result.text)
    page = turned(material.picture(result.page), result.rotated) if boxes else None
    return [as_jpeg(cut_out(page, box)) for box in boxes] if page else []
