"""Pages of a PDF, drawn by pdfium as a viewer shows them: with their rotation, annotations and filled-in forms.

Called by worker processes only: pdfium may take unbounded time and memory, and must not be called by two threads.
"""

from __future__ import annotations

import contextlib
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
from PIL import Image

from models.model_errors import InvalidInput

from .annotations import give_appearances
from .drawn import Drawn
from .font_mapper import mapper
from .fonts import has_fontconfig
from .glyphs import Lacking, lacking
from .repair import CUT_OFF, REPAIRED, is_cut_off, repaired
from .structure import Structure

_POINTS_PER_INCH = 72
_LONGEST_SIDE = 32_000  # pixels; pdfium draws nothing beyond 32,767

_ERRORS = {
    pdfium_c.FPDF_ERR_FILE: "the file cannot be opened",
    pdfium_c.FPDF_ERR_FORMAT: "it is damaged or cut off; get the file again, or repair it (qpdf, mutool clean)",
    pdfium_c.FPDF_ERR_PASSWORD: "it is encrypted; give its password (--password, OCR_ONNX_PDF_PASSWORD; ocr.password "
    "in a request), or remove it first (qpdf --decrypt --password=...)",
    pdfium_c.FPDF_ERR_SECURITY: "its encryption is of an unknown kind; save it without a password",
}


class NotPdf(InvalidInput):
    """Neither pdfium nor qpdf can read the file."""


class PdfPages:
    """The pages of an opened PDF."""

    def __init__(self, source: Path | bytes, name: str, dpi: int, max_pixels: int, password: str | None = None) -> None:
        self._name, self._dpi, self._max_pixels = name, dpi, max_pixels
        self.warnings: tuple[str, ...] = ()  # warnings about the document, repeated for each page
        # kept alive: pdfium reads these bytes as long as the document is open
        handle, self._source = self._load(source, password)
        self._is_cut_off = is_cut_off(source)
        if self._is_cut_off:
            self.warnings = self.warnings or (CUT_OFF,)
        self._structure, self._password = Structure(self._source, password), password
        self._fonts = mapper()
        self._fonts.needed, self._fonts.lacking = frozenset(), frozenset()
        self._pdf = _with_forms(handle)
        self.count = len(self._pdf)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels of the page as ``page`` draws it."""
        with contextlib.closing(self._page(index)) as page:
            width, height = page.get_size()
        scale = self._scale(width, height, index)
        return math.ceil(width * scale), math.ceil(height * scale)

    def weight(self, index: int) -> int:
        """Pixels that count for the memory of drawing a page, beyond those of the page itself: none that is known."""
        return 0

    def page(self, index: int) -> Drawn:
        """One page, in RGB."""
        image, missing, dpi = self._drawn(index)
        if missing and self._find_fonts(missing):
            image, missing, dpi = self._drawn(index)
        return Drawn(image, missing.warnings(), self._is_cut_off, dpi)

    def _drawn(self, index: int) -> tuple[Image.Image, Lacking, float]:
        """A drawn page, the letters that the page lacks, and its dots per inch."""
        page = self._page(index)
        try:
            width, height = page.get_size()
            scale = self._scale(width, height, index)
            give_appearances(self._pdf.raw, page.raw, partial(self._structure.annotation, index))
            bitmap = page.render(scale=scale, rev_byteorder=True, limit_image_cache=True)
            try:
                image: Image.Image = bitmap.to_pil()
                image = image.convert("RGB")
            finally:
                bitmap.close()
            dpi = scale * _POINTS_PER_INCH / self._structure.user_unit(index)
            return image, lacking(page.raw, image), dpi
        except pdfium.PdfiumError as error:
            raise InvalidInput(f"page {index + 1} of {self._name} cannot be drawn: {error}") from error
        finally:
            page.close()

    def _find_fonts(self, missing: Lacking) -> bool:
        """Let fonts be chosen by missing letters, too; returns whether drawing again may help."""
        letters = frozenset(missing.letters) - {0} - self._fonts.needed
        if not letters or not has_fontconfig():
            return False
        self._fonts.needed |= letters
        self._fonts.lacking |= missing.fonts
        self._pdf.close()
        handle, code = _open(self._source, self._password)
        if not handle:
            raise InvalidInput(f"{self._name} cannot be read any more (pdfium error {code}); was it changed?")
        self._pdf = _with_forms(handle)  # reopened, since pdfium chooses fonts once for an open document
        return True

    def _page(self, index: int) -> Any:
        """An opened page, which the caller closes; shown whole, as by other viewers, if its crop box lies outside."""
        try:
            page = self._pdf[index]
            if min(page.get_size()) > 0:
                return page
            page.set_cropbox(*page.get_mediabox())  # takes effect when the page is opened again
            page.close()
            return self._pdf[index]
        except pdfium.PdfiumError as error:
            raise self._damaged(index, error) from error

    def _damaged(self, index: int, error: Exception) -> InvalidInput:
        return InvalidInput(f"page {index + 1} of {self._name} is damaged: {error}; repair the file")

    def _scale(self, width: float, height: float, index: int) -> float:
        """Pixels per point: by the dpi, or as many as the page's limit of pixels allows."""
        if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0):
            raise InvalidInput(
                f"page {index + 1} of {self._name} has size {width:g} x {height:g} points; repair the file"
            )
        wanted = self._dpi / _POINTS_PER_INCH * self._structure.user_unit(index)
        # pdfium rounds up, by less than a pixel a side.
        largest = math.sqrt(self._max_pixels / (width * height)) * 0.999
        return min(wanted, largest, _LONGEST_SIDE / max(width, height))

    def close(self) -> None:
        """Close the file."""
        self._pdf.close()
        self._structure.close()

    def _load(self, source: Path | bytes, password: str | None) -> tuple[Any, Path | bytes]:
        """pdfium's handle of a document, repaired where needed, and the source that the handle was opened from."""
        handle, code = _open(source, password)
        if handle:
            return handle, source
        if code in (pdfium_c.FPDF_ERR_FORMAT, _NO_PAGES):
            for other in repaired(source, password):
                handle, _ = _open(other, password)
                if handle:
                    self.warnings = (REPAIRED,)
                    return handle, other
        if code == pdfium_c.FPDF_ERR_PASSWORD and password is not None:
            raise InvalidInput(f"{self._name} cannot be read: the password that was given is not the one that opens it")
        if code == _NO_PAGES:
            raise InvalidInput(f"{self._name} has no pages; save it anew with the program that made it")
        kind = NotPdf if code == pdfium_c.FPDF_ERR_FORMAT else InvalidInput
        raise kind(f"{self._name} cannot be read: {_ERRORS.get(code, f'pdfium error {code}')}")


def _with_forms(handle: Any) -> pdfium.PdfDocument:
    pdf = pdfium.PdfDocument(handle)
    with contextlib.suppress(pdfium.PdfiumError):  # a damaged form: the rest of the page can still be read
        pdf.init_forms()
    return pdf


_NO_PAGES = -1  # our own error beside pdfium's


def _open(source: Path | bytes, password: str | None) -> tuple[Any, int]:
    """pdfium's handle, or None and an error. (pypdfium2's loader calls a document without pages damaged.)"""
    code = 0
    for encoding in ("utf-8", "latin-1"):  # UTF-8 for newer encryption, Latin-1 for older
        try:
            secret = None if password is None else password.encode(encoding)
        except UnicodeEncodeError:
            break
        if isinstance(source, bytes):
            handle = pdfium_c.FPDF_LoadMemDocument64(source, len(source), secret)
        else:
            handle = pdfium_c.FPDF_LoadDocument(os.fsencode(source) + b"\0", secret)
        if handle and pdfium_c.FPDF_GetPageCount(handle) > 0:
            return handle, 0
        if handle:
            pdfium_c.FPDF_CloseDocument(handle)
            return None, _NO_PAGES
        code = pdfium_c.FPDF_GetLastError()
        if code != pdfium_c.FPDF_ERR_PASSWORD or password is None:
            break
    return None, code
