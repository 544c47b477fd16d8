"""Documents as pages: a PDF's pages are rasterised, a picture's frames are its pages.

The command line and the server open users' files here. Worker processes (``workers``) open files and draw pages, within
limits of time and memory; one page at a time is in memory.
"""

from __future__ import annotations

from pathlib import Path

from models.model_errors import InvalidInput
from models.pixels import Transparency
from models.turned import Orient

from .document import Document
from .drawn import Drawn
from .in_turn import DrawnPages
from .limits import (
    DEFAULT_DPI,
    DEFAULT_MAX_PIXELS,
    DPI_RANGE,
    IMAGE_FORMATS,
    SHOWN_PIXELS,
    How,
    Limits,
    Stop,
    Stopped,
    TooManyPixels,
    enough_pixels,
    never,
)
from .pages import page_ranges, parse_pages
from .workers import Workers

__all__ = [
    "DEFAULT_DPI",
    "DEFAULT_MAX_PIXELS",
    "DPI_RANGE",
    "IMAGE_FORMATS",
    "SHOWN_PIXELS",
    "Document",
    "Drawn",
    "DrawnPages",
    "How",
    "Limits",
    "Stop",
    "Stopped",
    "TooManyPixels",
    "Workers",
    "enough_pixels",
    "never",
    "open_document",
    "open_picture",
    "page_ranges",
    "parse_pages",
]  # fmt: skip


def open_document(
    source: Path | bytes,
    *,
    dpi: int = DEFAULT_DPI,
    name: str = "",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    workers: Workers | None = None,
    stop: Stop = never,
    transparency: Transparency = "white",
    password: str | None = None,
    orient: Orient = "off",
    shown_pixels: int | None = None,
) -> Document:
    """Open a PDF or a picture, told apart by content.

    Parameters
    ----------
    source
        a file, which stays open and is read page by page, or the whole content.
    dpi
        dots per inch at which the pages of a PDF are drawn; pictures have their own pixels.
    name
        how messages call the document; the file's path by default.
    max_pixels
        most pixels of one page. A PDF's page that would have more is drawn at fewer dots per inch, a larger picture is
        scaled down; a picture with more than twelve times as many is refused.
    shown_pixels
        most pixels worth drawing, where a model sees fewer than ``max_pixels`` (see ``enough_pixels``).
    workers
        the processes that open the file and draw its pages; by default one process, which ends with the document.
    transparency
        the background of a transparent picture (see ``models.pixels.to_rgb``).
    password
        password of an encrypted PDF; ignored for other documents.
    orient
        ``auto`` turns pages upright whose text lies on its side or head, where that is sure (see ``upright``).
    stop
        asked about twenty times a second; once true, opening is ended.

    Raises
    ------
    InvalidInput
        for a file that is no document, is damaged, encrypted or without pages, or goes beyond the workers' limits; the
        message names the remedy.
    Stopped
        when ``stop`` turned true.
    """
    if not DPI_RANGE[0] <= dpi <= DPI_RANGE[1]:
        raise InvalidInput(f"dpi is {dpi}; it must be between {DPI_RANGE[0]} and {DPI_RANGE[1]}")
    name = name or ("the document" if isinstance(source, bytes) else str(source))
    how = {"dpi": dpi, "picture": False, "transparency": transparency, "password": password,
           "shown_pixels": shown_pixels}  # fmt: skip
    return Document(source, name, max_pixels, workers, stop, how, orient)


def open_picture(
    source: bytes, *, name: str, max_pixels: int = DEFAULT_MAX_PIXELS, workers: Workers, stop: Stop = never,
    transparency: Transparency = "white", orient: Orient = "off",
) -> Document:  # fmt: skip
    """Open a picture as a document of one page, its first frame. See ``open_document``."""
    how = {"picture": True, "transparency": transparency, "shown_pixels": None}
    return Document(source, name, max_pixels, workers, stop, how, orient)
