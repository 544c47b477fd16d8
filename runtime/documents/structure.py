"""What a PDF's objects say and pdfium does not tell, read by qpdf when it is first asked for.

Only a worker process uses this.
"""

from __future__ import annotations

import io
import math
import mmap
from pathlib import Path
from typing import Any

_MARKS = (b"/UserUnit", b"/ObjStm")  # a page's unit stands in the file as it is, or in a compressed stream of objects
_UNITS = (0.01, 10_000.0)  # that make sense


class Structure:
    """The objects of a PDF that is open in pdfium. Where qpdf cannot read the file, everything is as by default."""

    def __init__(self, source: Path | bytes, password: str | None) -> None:
        self._source, self._password = source, password
        self._pdf: Any = None
        self._tried = False
        self._may_have_units = _holds(source, _MARKS)

    def user_unit(self, page: int) -> float:
        """Points of one unit of a page, counted from 0: 1 but for large drawings."""
        if not self._may_have_units:
            return 1.0
        unit = self._number(lambda: self._page(page).get("/UserUnit", 1))
        return unit if unit is not None and _UNITS[0] <= unit <= _UNITS[1] else 1.0

    def stroke_width(self, page: int, annotation: int) -> float | None:
        """What the border style of an annotation says, in points; None where it has none."""
        return self._number(lambda: self._page(page).Annots[annotation].BS.get("/W", 1))

    def close(self) -> None:
        """Let go of the file."""
        if self._pdf is not None:
            self._pdf.close()

    def _page(self, index: int) -> Any:
        return self._pdf.pages[index].obj

    def _number(self, read: Any) -> float | None:
        """A finite number from the file; None for anything else that may stand there."""
        if not self._open():
            return None
        try:
            number = float(read())
        except Exception:  # whatever a damaged file makes of qpdf's objects: KeyError, TypeError, PdfError ...
            return None
        return number if math.isfinite(number) else None

    def _open(self) -> bool:
        if not self._tried:
            self._tried = True
            import pikepdf  # takes a while, and few documents need it

            source = io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source
            try:
                self._pdf = pikepdf.open(source, password=self._password or "")
            except Exception:  # pdfium has opened the file; what qpdf would have said beside that is left out
                self._pdf = None
        return self._pdf is not None


def _holds(source: Path | bytes, marks: tuple[bytes, ...]) -> bool:
    if isinstance(source, bytes):
        return any(mark in source for mark in marks)
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return any(data.find(mark) >= 0 for mark in marks)
