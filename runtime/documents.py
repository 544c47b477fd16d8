"""Documents as pages: a PDF is rasterised page by page, a picture is a document of its frames.

The command line and the server open what users give them here. Only the page that is asked for is ever in memory.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
from PIL import Image

from models.errors import InvalidInput
from models.pixels import upright_rgb

DEFAULT_DPI = 144
DPI_RANGE = (18, 1200)
DEFAULT_MAX_PIXELS = 50_000_000  # of one page; the server's default limit for an image
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")

_POINTS_PER_INCH = 72
_MOST_FRAMES = 2_000  # of a picture; a file of a few MB can claim a million, each of which costs time
_LONGEST_SIDE = 32_000  # pixels; pdfium draws nothing beyond 32,767
_PAGES_OF_ONE_OPENING = 16  # pdfium keeps every image that it has read until the document is closed
_PDF_MARK_WITHIN = 1024  # bytes; readers accept a header that is not at the very start
_RANGE = re.compile(r"(\d{1,9})\s*(?:(-)\s*(\d{1,9})?)?", re.ASCII)

_PDF_ERRORS = {
    pdfium_c.FPDF_ERR_FILE: "the file cannot be opened",
    pdfium_c.FPDF_ERR_FORMAT: "it is damaged or cut off; get the file again, or repair it (qpdf, mutool clean)",
    pdfium_c.FPDF_ERR_PASSWORD: "it is encrypted; remove its password first (qpdf --decrypt --password=...)",
    pdfium_c.FPDF_ERR_SECURITY: "its encryption is of an unknown kind; save it without a password",
}

# pdfium must not be called by two threads at once, not even for two documents.
_pdfium_lock = threading.RLock()


class Document(ABC):
    """An opened document. Pages may be asked for by any thread; close it, or use it as a context manager."""

    def __init__(self, name: str, page_count: int) -> None:
        self.name = name
        self.page_count = page_count

    def page(self, index: int) -> Image.Image:
        """One page, counted from 0: upright, in RGB, a picture of its own that the caller may keep or change.

        Raises
        ------
        InvalidInput
            when there is no such page, or it cannot be decoded or drawn.
        """
        if not 0 <= index < self.page_count:
            raise InvalidInput(f"{self.name} has {_pages(self.page_count)}; there is no page {index + 1}")
        return self._page(index)

    @abstractmethod
    def _page(self, index: int) -> Image.Image: ...

    @abstractmethod
    def close(self) -> None:
        """Let go of the file. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_document(
    source: Path | bytes, *, dpi: int = DEFAULT_DPI, name: str = "", max_pixels: int = DEFAULT_MAX_PIXELS
) -> Document:
    """Open a PDF or a picture. What it is, is decided by its content.

    Parameters
    ----------
    source
        a file, which stays open and is read as pages are asked for, or the whole content.
    dpi
        dots per inch at which the pages of a PDF are drawn; pictures have their own pixels.
    name
        how messages call the document; the file's path by default.
    max_pixels
        most pixels of one page. A page of a PDF that would have more is drawn at fewer dots per inch; a picture that
        has more is refused.

    Raises
    ------
    InvalidInput
        for what is not a document, is damaged, encrypted or without pages; the message says what to do about it.
    """
    if not DPI_RANGE[0] <= dpi <= DPI_RANGE[1]:
        raise InvalidInput(f"dpi is {dpi}; it must be between {DPI_RANGE[0]} and {DPI_RANGE[1]}")
    name = name or ("the document" if isinstance(source, bytes) else str(source))
    start = _first_bytes(source, name)
    if not start:
        raise InvalidInput(f"{name} is empty; it has 0 bytes")
    if b"%PDF-" in start:
        return _Pdf(source, name, dpi, max_pixels)
    return _Picture(source, name, max_pixels)


def parse_pages(text: str, page_count: int) -> list[int]:
    """Page numbers such as ``1-5,9`` or ``12-`` as indices from 0, in ascending order, each once.

    Raises
    ------
    InvalidInput
        for anything else, and for a page beyond the last one.
    """
    chosen: set[int] = set()
    for first, last in page_ranges(text):
        if max(first, last or 0) > page_count:
            raise InvalidInput(f"page {max(first, last or 0)} is beyond the end: there {_are(page_count)}")
        chosen.update(range(first - 1, last or page_count))
    return sorted(chosen)


def page_ranges(text: str) -> list[tuple[int, int | None]]:
    """The ranges in ``1-5,9,12-``, counted from 1, both ends included; None for an end that is the document's.

    Raises
    ------
    InvalidInput
        for anything else.
    """
    ranges: list[tuple[int, int | None]] = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        if found is None:
            raise InvalidInput(f"pages {text[:60]!r} cannot be read; write numbers and ranges such as 1-5,9 or 12-")
        first = int(found[1])
        last = int(found[3]) if found[3] else None if found[2] else first
        if first < 1 or (last is not None and last < first):
            raise InvalidInput(f"pages {part.strip()[:60]!r} is no range; pages count from 1, the lower one first")
        ranges.append((first, last))
    return ranges


class _Pdf(Document):
    """Pages drawn by pdfium, as a viewer shows them: with their rotation, annotations and filled-in forms."""

    def __init__(self, source: Path | bytes, name: str, dpi: int, max_pixels: int) -> None:
        self._dpi, self._max_pixels = dpi, max_pixels
        self._source = source  # pdfium reads the bytes as long as the document is open
        with _pdfium_lock:
            self._pdf: pdfium.PdfDocument | None = _opened_pdf(source, name)
            self._drawn = 0  # pages since it was opened
            count = len(self._pdf)
        super().__init__(name, count)

    def _page(self, index: int) -> Image.Image:
        with _pdfium_lock:
            if self._pdf is None:
                raise InvalidInput(f"{self.name} has been closed")
            if self._drawn == _PAGES_OF_ONE_OPENING:
                self._pdf.close()
                self._pdf = _opened_pdf(self._source, self.name)
                self._drawn = 0
            self._drawn += 1
            try:
                page = self._pdf[index]
            except pdfium.PdfiumError as error:
                raise InvalidInput(f"page {index + 1} of {self.name} is damaged: {error}; repair the file") from error
            try:
                bitmap = page.render(scale=self._scale(page, index), rev_byteorder=True, limit_image_cache=True)
                try:
                    image: Image.Image = bitmap.to_pil()
                    return image.convert("RGB")
                finally:
                    bitmap.close()
            except (pdfium.PdfiumError, MemoryError) as error:
                raise InvalidInput(f"page {index + 1} of {self.name} cannot be drawn: {error}") from error
            finally:
                page.close()

    def _scale(self, page: pdfium.PdfPage, index: int) -> float:
        """Pixels per point: what the dpi asks for, or as many as a page of this size may have."""
        width, height = (float(side) for side in page.get_size())
        if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0):
            raise InvalidInput(
                f"page {index + 1} of {self.name} has size {width:g} x {height:g} points; repair the file"
            )
        wanted = self._dpi / _POINTS_PER_INCH
        # pdfium rounds up, by less than a pixel a side.
        largest = math.sqrt(self._max_pixels / (width * height)) * 0.999
        return min(wanted, largest, _LONGEST_SIDE / max(width, height))

    def close(self) -> None:
        with _pdfium_lock:
            if self._pdf is not None:
                self._pdf.close()
                self._pdf = None


class _Picture(Document):
    """One page for each frame of a TIFF; of other formats the first frame (an animation is no document)."""

    def __init__(self, source: Path | bytes, name: str, max_pixels: int) -> None:
        self._source, self._max_pixels = source, max_pixels
        with self._opened(name) as image:
            count = _count_frames(image, name) if image.format == "TIFF" else 1
        super().__init__(name, count)

    def _page(self, index: int) -> Image.Image:
        with self._opened(self.name) as image:
            image.seek(index)
            self._check(image)
            image.load()
            self._check(image)  # some frames are larger than their header says
            return upright_rgb(image)

    def _check(self, image: Image.Image) -> None:
        if image.width * image.height > self._max_pixels:
            raise InvalidInput(
                f"{self.name} has {image.width} x {image.height} pixels; the limit is "
                f"{self._max_pixels / 1e6:g} million: scale it down"
            )

    def close(self) -> None:
        """Nothing stays open between pages."""

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Image.Image]:
        """The file as Pillow sees it. Every failure inside the block is the file's fault."""
        try:
            with _stream(self._source) as stream, Image.open(stream, formats=IMAGE_FORMATS) as image:
                yield image
        except InvalidInput:
            raise
        except Image.DecompressionBombError:
            pillows = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            if self._max_pixels <= pillows:
                limit = f"{self._max_pixels / 1e6:g} million pixels"
            else:
                limit = f"{pillows / 1e6:.3g} million pixels, the most that Pillow opens whatever the limit set here"
            raise InvalidInput(f"{name} has more than {limit}; scale it down") from None
        except Exception as error:  # decoders of damaged files raise whatever they run into
            raise InvalidInput(
                f"{name} cannot be read ({_reason(error)}); documents are PDF, {', '.join(IMAGE_FORMATS)}"
            ) from error


def _count_frames(image: Image.Image, name: str) -> int:
    """As Pillow's ``n_frames``, which goes through all that a file claims to have, however many those are."""
    for count in range(1, _MOST_FRAMES + 1):
        try:
            image.seek(count)
        except EOFError:
            return count
    raise InvalidInput(f"{name} has more than {_MOST_FRAMES:,} frames, the most that are read; split it")


def _stream(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _first_bytes(source: Path | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        return source[:_PDF_MARK_WITHIN]
    try:
        with source.open("rb") as file:
            return file.read(_PDF_MARK_WITHIN)
    except OSError as error:
        raise InvalidInput(f"{name} cannot be opened: {os.strerror(error.errno or 0)}") from error


def _opened_pdf(source: Path | bytes, name: str) -> pdfium.PdfDocument:
    pdf = pdfium.PdfDocument(_load_pdf(source, name))
    with contextlib.suppress(pdfium.PdfiumError):  # a damaged form: the rest of the page can still be read
        pdf.init_forms()
    return pdf


def _load_pdf(source: Path | bytes, name: str) -> Any:
    """pdfium's handle of a document with pages. (pypdfium2's own loading takes one without pages for a damaged one.)"""
    if isinstance(source, bytes):
        handle = pdfium_c.FPDF_LoadMemDocument64(source, len(source), None)
    else:
        handle = pdfium_c.FPDF_LoadDocument(os.fsencode(source.resolve()) + b"\0", None)
    if not handle:
        code = pdfium_c.FPDF_GetLastError()
        raise InvalidInput(f"{name} cannot be read: {_PDF_ERRORS.get(code, f'pdfium error {code}')}")
    if pdfium_c.FPDF_GetPageCount(handle) < 1:
        pdfium_c.FPDF_CloseDocument(handle)
        raise InvalidInput(f"{name} has no pages; save it anew with the program that made it")
    return handle


def _reason(error: Exception) -> str:
    text = str(error)
    if "cannot identify" in text:  # the message holds an object's address, which helps nobody
        return "not a known format, or damaged"
    return text[:100] or type(error).__name__


def _are(count: int) -> str:
    return f"{'is' if count == 1 else 'are'} {_pages(count)}"


def _pages(count: int) -> str:
    return f"{count} page" + "s" * (count != 1)
