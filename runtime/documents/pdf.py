"""Pages of a PDF, drawn by pdfium as a viewer shows them: with their rotation, annotations and filled-in forms.

Only a worker process calls this: pdfium may take all time and memory there is, and must not be called by two threads.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
from PIL import Image

from models.errors import InvalidInput

from .drawn import Drawn

_POINTS_PER_INCH = 72
_LONGEST_SIDE = 32_000  # pixels; pdfium draws nothing beyond 32,767

_ERRORS = {
    pdfium_c.FPDF_ERR_FILE: "the file cannot be opened",
    pdfium_c.FPDF_ERR_FORMAT: "it is damaged or cut off; get the file again, or repair it (qpdf, mutool clean)",
    pdfium_c.FPDF_ERR_PASSWORD: "it is encrypted; remove its password first (qpdf --decrypt --password=...)",
    pdfium_c.FPDF_ERR_SECURITY: "its encryption is of an unknown kind; save it without a password",
}


class PdfPages:
    """The pages of an opened PDF."""

    def __init__(self, source: Path | bytes, name: str, dpi: int, max_pixels: int) -> None:
        self._name, self._dpi, self._max_pixels = name, dpi, max_pixels
        self._source = source  # pdfium reads the bytes as long as the document is open
        self._pdf = pdfium.PdfDocument(_load(source, name))
        with contextlib.suppress(pdfium.PdfiumError):  # a damaged form: the rest of the page can still be read
            self._pdf.init_forms()
        self.count = len(self._pdf)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels of the page as ``page`` draws it."""
        try:
            width, height = self._pdf.get_page_size(index)
        except pdfium.PdfiumError as error:
            raise self._damaged(index, error) from error
        scale = self._scale(width, height, index)
        return math.ceil(width * scale), math.ceil(height * scale)

    def page(self, index: int) -> Drawn:
        """One page, in RGB."""
        try:
            page = self._pdf[index]
        except pdfium.PdfiumError as error:
            raise self._damaged(index, error) from error
        try:
            width, height = page.get_size()
            scale = self._scale(width, height, index)
            bitmap = page.render(scale=scale, rev_byteorder=True, limit_image_cache=True)
            try:
                image: Image.Image = bitmap.to_pil()
                return Drawn(image.convert("RGB"))
            finally:
                bitmap.close()
        except pdfium.PdfiumError as error:
            raise InvalidInput(f"page {index + 1} of {self._name} cannot be drawn: {error}") from error
        finally:
            page.close()

    def _damaged(self, index: int, error: Exception) -> InvalidInput:
        return InvalidInput(f"page {index + 1} of {self._name} is damaged: {error}; repair the file")

    def _scale(self, width: float, height: float, index: int) -> float:
        """Pixels per point: what the dpi asks for, or as many as a page of this size may have."""
        if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0):
            raise InvalidInput(
                f"page {index + 1} of {self._name} has size {width:g} x {height:g} points; repair the file"
            )
        wanted = self._dpi / _POINTS_PER_INCH
        # pdfium rounds up, by less than a pixel a side.
        largest = math.sqrt(self._max_pixels / (width * height)) * 0.999
        return min(wanted, largest, _LONGEST_SIDE / max(width, height))

    def close(self) -> None:
        """Let go of the file."""
        self._pdf.close()


def _load(source: Path | bytes, name: str) -> Any:
    """pdfium's handle of a document with pages. (pypdfium2's own loading takes one without pages for a damaged one.)"""
    if isinstance(source, bytes):
        handle = pdfium_c.FPDF_LoadMemDocument64(source, len(source), None)
    else:
        handle = pdfium_c.FPDF_LoadDocument(os.fsencode(source) + b"\0", None)
    if not handle:
        code = pdfium_c.FPDF_GetLastError()
        raise InvalidInput(f"{name} cannot be read: {_ERRORS.get(code, f'pdfium error {code}')}")
    if pdfium_c.FPDF_GetPageCount(handle) < 1:
        pdfium_c.FPDF_CloseDocument(handle)
        raise InvalidInput(f"{name} has no pages; save it anew with the program that made it")
    return handle
