"""Facts in a PDF's objects that pdfium does not tell, read by qpdf on first use.

Used by worker processes only.
"""

from __future__ import annotations

import io
import math
import mmap
from pathlib import Path
from typing import Any

_MARKS = (b"/UserUnit", b"/ObjStm")  # /UserUnit is plain text in the file, or hidden in a compressed object stream
_UNITS = (0.01, 10_000.0)  # plausible units


class Structure:
    """The objects of a PDF that is open in pdfium; defaults where qpdf cannot read the file."""

    def __init__(self, source: Path | bytes, password: str | None) -> None:
        self._source, self._password = source, password
        self._pdf: Any = None
        self._tried = False
        self._may_have_units = _holds(source, _MARKS)

    def user_unit(self, page: int) -> float:
        """Points per unit of a page, counted from 0: above 1 only in large drawings."""
        if not self._may_have_units:
            return 1.0
        unit = self._number(lambda: self._page(page).get("/UserUnit", 1))
        return unit if unit is not None and _UNITS[0] <= unit <= _UNITS[1] else 1.0

    def stroke_width(self, page: int, annotation: int) -> float | None:
        """Width in an annotation's border style, in points; None without a border style."""
        return self._number(lambda: self._page(page).Annots[annotation].BS.get("/W", 1))

    def close(self) -> None:
        """Close the file."""
        if self._pdf is not None:
            self._pdf.close()

    def _page(self, index: int) -> Any:
        return self._pdf.pages[index].obj

    def _number(self, read: Any) -> float | None:
        """A finite number from the file; None for any other object."""
        if not self._open():
            return None
        try:
            number = float(read())
        except Exception:  # damaged files cause all kinds of errors: KeyError, TypeError, PdfError ...
            return None
        return number if math.isfinite(number) else None

    def _open(self) -> bool:
        if not self._tried:
            self._tried = True
            import pikepdf  # takes a while, and few documents need it

            source = io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source
            try:
                self._pdf = pikepdf.open(source, password=self._password or "")
            except Exception:  # pdfium has opened the file; qpdf's facts are left out
                self._pdf = None
        return self._pdf is not None


def _holds(source: Path | bytes, marks: tuple[bytes, ...]) -> bool:
    if isinstance(source, bytes):
        return any(mark in source for mark in marks)
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return any(data.find(mark) >= 0 for mark in marks)
