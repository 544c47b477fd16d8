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

EDGE = 1 << 16  # bytes; so much junk in front of a header is skipped
_OBJECT = re.compile(rb"(?:\s*%[^\r\n]*[\r\n])*\s*\d+\s+\d+\s+obj\b")  # the first object, perhaps behind comments
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
    import pikepdf  # takes a while, and few documents need it

    try:
        with pikepdf.open(io.BytesIO(headed), password=password or "") as pdf:
            saved = io.BytesIO()
            pdf.save(saved)
    except (pikepdf.PdfError, pikepdf.PasswordError, ValueError, RuntimeError):
        return  # beyond repair: the first reader's error stands
    yield saved.getvalue()
