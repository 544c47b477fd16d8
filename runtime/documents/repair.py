"""PDFs that pdfium does not open: what belongs in front of the pages is put there, and qpdf rebuilds the rest.

Only a worker process calls this.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

HEADER = b"%PDF-"
HEADER_WITHIN = 1024  # bytes: where readers look for it
REPAIRED = "the PDF is damaged; it was repaired, and parts of it may be missing"

EDGE = 1 << 16  # bytes; so much junk in front of a header is skipped
_OBJECT = re.compile(rb"(?:\s*%[^\r\n]*[\r\n])*\s*\d+\s+\d+\s+obj\b")  # the first, perhaps behind comments
_MOST_BYTES = 256 << 20  # of a file that is repaired, which stands in memory several times


def is_pdf_without_its_start(start: bytes, end: bytes) -> bool:
    """Whether a file that no other reader knows is a PDF: its header comes late, or never.

    start, end : the first and the last ``EDGE`` bytes of the file.
    """
    return HEADER in start or (_OBJECT.match(start) is not None and any(mark in end for mark in (b"%%EOF", b"trailer")))


def repaired(source: Path | bytes, password: str | None) -> Iterator[bytes]:
    """The document in other words, the most likely to be read first; nothing for one that is too large.

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
        return  # it is beyond repair, which its first reader has said
    yield saved.getvalue()
