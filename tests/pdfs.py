"""PDFs for tests, made on the spot: of text, of scans, rotated, encrypted, cut off, without pages."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
from PIL import Image
from pypdf import PdfReader, PdfWriter

A4 = (595.0, 842.0)  # points


def text_pdf(pages: Sequence[str], size: tuple[float, float] = A4, points: float = 24) -> bytes:
    """One page for each text, whose lines stand in a standard font from the top."""
    pdf = pdfium.PdfDocument.new()
    font = pdfium_c.FPDFText_LoadStandardFont(pdf, b"Helvetica")
    for text in pages:
        page = pdf.new_page(*size)
        for number, line in enumerate(text.splitlines()):
            written = pdfium_c.FPDFPageObj_CreateTextObj(pdf, font, points)
            encoded = (line + "\0").encode("utf-16-le")
            letters = (pdfium_c.FPDF_WCHAR * (len(encoded) // 2)).from_buffer_copy(encoded)
            assert pdfium_c.FPDFText_SetText(written, letters)
            pdfium_c.FPDFPageObj_Transform(written, 1, 0, 0, 1, 20, size[1] - (number + 1.5) * points)
            pdfium_c.FPDFPage_InsertObject(page, written)
        page.gen_content()
        page.close()
    return _saved(pdf)


def scanned_pdf(images: Sequence[Image.Image], dpi: float = 144) -> bytes:
    """One page for each image, which fills it: drawn at the same dpi, a page has the image's pixels."""
    pdf = pdfium.PdfDocument.new()
    for image in images:
        width, height = image.width * 72 / dpi, image.height * 72 / dpi
        page = pdf.new_page(width, height)
        picture = pdfium.PdfImage.new(pdf)
        bitmap = pdfium.PdfBitmap.from_pil(image.convert("RGB"))
        picture.set_bitmap(bitmap)
        picture.set_matrix(pdfium.PdfMatrix().scale(width, height))
        page.insert_obj(picture)
        page.gen_content()
        page.close()
    return _saved(pdf)


def rotated(data: bytes, degrees: int) -> bytes:
    """The same document, its pages to be shown turned clockwise."""
    pdf = pdfium.PdfDocument(data)
    for page in pdf:
        page.set_rotation(degrees)
        page.close()
    return _saved(pdf)


def encrypted(data: bytes, password: str) -> bytes:
    """The same document behind a password; an empty one opens in every viewer."""
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(data)))
    writer.encrypt(password, owner_password="owner", algorithm="AES-256")
    return _written(writer)


def without_pages() -> bytes:
    """A well-formed document that has none."""
    return _written(PdfWriter())


def _written(writer: PdfWriter) -> bytes:
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def _saved(pdf: pdfium.PdfDocument) -> bytes:
    buffer = io.BytesIO()
    pdf.save(buffer)
    pdf.close()
    return buffer.getvalue()
