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


def repeated(data: bytes, times: int) -> bytes:
    """The same pages again and again, each time with pictures of their own; what is compressed is copied as it is."""
    pdf, pages = pdfium.PdfDocument.new(), pdfium.PdfDocument(data)
    for _ in range(times):
        pdf.import_pages(pages)
    return _saved(pdf)


def rotated(data: bytes, degrees: int) -> bytes:
    """The same document, its pages to be shown turned clockwise."""
    pdf = pdfium.PdfDocument(data)
    for page in pdf:
        page.set_rotation(degrees)
        page.close()
    return _saved(pdf)


def encrypted(data: bytes, password: str, algorithm: str = "AES-256") -> bytes:
    """The same document behind a password; an empty one opens in every viewer."""
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(data)))
    writer.encrypt(password, owner_password="owner", algorithm=algorithm)
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


def drawn_pdf(content: str, page: str = "", more: Sequence[str] = (), size: tuple[int, int] = (300, 200)) -> bytes:
    """One page, 300 x 200 points, with a content stream as it is written; /F in it is Helvetica.

    page : more entries of the page. more : further objects, the first of which is number 6.
    """
    resources = "" if "/Resources" in page else "/Resources << /Font << /F 5 0 R >> >>"
    sheet = f"/MediaBox [0 0 {size[0]} {size[1]}] /Contents 4 0 R {resources} {page}"
    return _numbered([
        "<< /Type /Catalog /Pages 2 0 R >>", "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R {sheet} >>",
        f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>", *more,
    ])  # fmt: skip


def nested_pdf(depth: int = 14, uses: int = 10, pages: int = 1) -> bytes:
    """A few kB whose pages draw forms that draw forms, each of which is used so often: uses ** depth drawings."""
    first = 3 + pages
    kids = " ".join(f"{number} 0 R" for number in range(3, first))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {pages} >>"]
    page = f"/MediaBox [0 0 200 200] /Resources << /XObject << /F {first + 1} 0 R >> >> /Contents {first} 0 R"
    objects += [f"<< /Type /Page /Parent 2 0 R {page} >>"] * pages
    objects.append("<< /Length 5 >>\nstream\n/F Do\nendstream")
    for level in range(1, depth + 1):
        content = "0 0 9 9 re f" if level == depth else "/F Do " * uses
        inner = f"/Resources << /XObject << /F {first + level + 1} 0 R >> >>"
        form = f"/Type /XObject /Subtype /Form /BBox [0 0 200 200] {inner} /Length {len(content)}"
        objects.append(f"<< {form} >>\nstream\n{content}\nendstream")
    return _numbered(objects)


def field_bomb_pdf(depth: int = 40) -> bytes:
    """2.5 kB whose form fields have 2 ** depth leaves, all of which pdfium visits before a page is drawn."""
    objects = ["<< /Type /Catalog /Pages 2 0 R /AcroForm 4 0 R >>", "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
               "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] >>",
               "<< /Fields [5 0 R] /NeedAppearances true >>"]  # fmt: skip
    for number in range(5, 5 + depth):
        parent = f" /Parent {number - 1} 0 R" if number > 5 else ""
        objects.append(f"<< /Kids [{number + 1} 0 R {number + 1} 0 R]{parent} >>")
    objects.append("<< /T (x) /FT /Tx /Type /Annot /Subtype /Widget /Rect [0 0 9 9] >>")
    return _numbered(objects)


def _numbered(objects: Sequence[str]) -> bytes:
    """A file of numbered objects, the first of which is the catalogue."""
    data, places = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{text}\nendobj\n".encode()
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    end = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n".encode()
    return data + head + table + end
