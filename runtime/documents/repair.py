"""Repairs PDFs that pdfium does not open: adds a missing header, and lets qpdf rebuild the rest.

Called by worker processes only.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

HEADER = b"%PDF-"
HEADER_WITHIN = 1024  # bytes: where readers look for the header
REPAIRED = "the PDF is damaged; it was repaired, and parts of it may be missing"
CUT_OFF = "the PDF's end is missing: it is cut off, and pages or parts of them may be lost"

EDGE = 1 << 16  # bytes; so much junk in front of a header is skipped
_OBJECT = re.compile(rb"(?:\s*%[^\r\n]*[\r\n])*\s*\d+\s+\d+\s+obj\b")  # the first object, perhaps behind comments
_END = b"%%EOF"
_BEGUN = re.compile(rb"\d\s+\d+\s+obj\b")  # an object begins
_ANY_OBJECT = re.compile(rb"(?<!\d)(\d{1,8})\s+\d{1,5}\s+obj\b(.{0,2000}?)(?:\bstream\b|\bendobj\b)", re.DOTALL)
_KIND = re.compile(rb"/Type\s*/(Pages|Page|Catalog)\b")
_MOST_PAGES = 10_000  # pages of a document without a table of its pages
_MOST_BYTES = 256 << 20  # bytes of a file to repair, which is in memory several times


def is_pdf_without_its_start(start: bytes, end: bytes) -> bool:
    """Whether a file without a header at its start is a PDF all the same: the header comes late, or is missing.

    start, end : the first and the last ``EDGE`` bytes of the file.
    """
    return HEADER in start or (_OBJECT.match(start) is not None and any(mark in end for mark in (b"%%EOF", b"trailer")))


def repaired(source: Path | bytes, password: str | None) -> Iterator[bytes]:
    """Repaired versions of the document, the most likely to work first; none for a file that is too large.

    Raises
    ------
    OSError
        when the file cannot be read.
    """
    if (len(source) if isinstance(source, bytes) else source.stat().st_size) > _MOST_BYTES:
        return
    data = source if isinstance(source, bytes) else source.read_bytes()
    place = data.find(HEADER, 0, EDGE)
    headed = data[place:] if place >= 0 else HEADER + b"1.7\n" + data
    if place != 0:
        yield headed
    for other in (headed, _with_a_root(headed)):
        if other and (saved := _rebuilt(other, password)):
            yield saved


def is_cut_off(source: Path | bytes) -> bool:
    """Whether the file's end is missing: behind its last mark of an end there are objects, or there is no mark."""
    if isinstance(source, bytes):
        edge = source[-EDGE:]
    else:
        with source.open("rb") as file:
            file.seek(max(0, file.seek(0, io.SEEK_END) - EDGE))
            edge = file.read()
    _, mark, behind = edge.rpartition(_END)
    return not mark or _BEGUN.search(behind) is not None


def _rebuilt(data: bytes, password: str | None) -> bytes:
    """The document as qpdf rebuilds it; nothing if it is beyond repair."""
    import pikepdf  # takes a while, and few documents need it

    try:
        with pikepdf.open(io.BytesIO(data), password=password or "") as pdf:
            saved = io.BytesIO()
            pdf.save(saved)
    except (pikepdf.PdfError, pikepdf.PasswordError, ValueError, RuntimeError):
        return b""
    return saved.getvalue()


def _with_a_root(data: bytes) -> bytes:
    """The document with a trailer, which names its catalog; a missing catalog is made of the pages that are there.

    Only objects outside of compressed streams are found. Nothing without a page, and for an encrypted document, whose
    trailer held the key.
    """
    if b"/Encrypt" in data:
        return b""
    objects = {int(found[1]): found for found in _ANY_OBJECT.finditer(data)}  # the last of each number counts
    kinds = {number: _KIND.search(found[2]) for number, found in objects.items()}
    named = {number: kind[1] for number, kind in kinds.items() if kind is not None}
    pages = [number for number, kind in named.items() if kind == b"Page"][:_MOST_PAGES]
    if not pages:
        return b""
    catalogs = [number for number, kind in named.items() if kind == b"Catalog"]
    trees = [number for number, kind in named.items() if kind == b"Pages"]
    next_number, added, root = max(objects) + 1, b"", catalogs[-1] if catalogs else 0
    if not (catalogs and trees):
        root, tree = next_number, next_number + 1
        kids = b" ".join(b"%d 0 R" % page for page in pages)
        added = b"\n%d 0 obj\n<< /Type /Catalog /Pages %d 0 R >>\nendobj" % (root, tree)
        added += b"\n%d 0 obj\n<< /Type /Pages /Kids [%s] /Count %d >>\nendobj" % (tree, kids, len(pages))
    return data + b"\nendstream\nendobj" + added + b"\ntrailer\n<< /Root %d 0 R >>\nstartxref\n0\n%%%%EOF\n" % root
