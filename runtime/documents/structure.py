"""Facts in a PDF's objects that pdfium does not tell, read by qpdf on first use.

Used by worker processes only.
"""

from __future__ import annotations

import io
import math
import mmap
from decimal import Decimal
from pathlib import Path
from typing import Any

_MARKS = (b"/UserUnit", b"/ObjStm")  # /UserUnit is plain text in the file, or hidden in a compressed object stream
_UNITS = (0.01, 10_000.0)  # plausible units
# Entries of an annotation about its look. Others lead to the page and the document.
_LOOKS = (
    "/AP",
    "/BS",
    "/Border",
    "/C",
    "/CA",
    "/CL",
    "/Contents",
    "/DA",
    "/IT",
    "/LE",
    "/LL",
    "/LLE",
    "/Name",
    "/Q",
    "/RD",
)
_DEEPEST = 2  # levels of lists and dictionaries in such an entry
_MOST_ENTRIES = 100  # entries of one object


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

    def annotation(self, page: int, number: int) -> dict[str, Any]:
        """What an annotation says of its look, in plain Python, names with their slash; empty if it cannot be read."""
        if not self._open():
            return {}
        try:
            found = self._page(page).Annots[number]
            return {key: _plain(found[key], _DEEPEST) for key in _LOOKS if key in found}
        except Exception:  # damaged files cause all kinds of errors: KeyError, TypeError, PdfError ...
            return {}

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


def _plain(value: Any, depth: int) -> Any:
    """A PDF object as numbers, strings, lists and dictionaries. depth : levels of lists and dictionaries to enter."""
    import pikepdf

    if isinstance(value, pikepdf.Dictionary | pikepdf.Stream):
        return {key: _plain(value[key], depth - 1) for key in list(value.keys())[:_MOST_ENTRIES]} if depth else {}
    if isinstance(value, pikepdf.Array):
        return [_plain(one, depth - 1) for one in list(value)[:_MOST_ENTRIES]] if depth else []
    if isinstance(value, pikepdf.Name | pikepdf.String):
        return str(value)
    return value if isinstance(value, bool) else float(value) if isinstance(value, int | Decimal) else None


def _holds(source: Path | bytes, marks: tuple[bytes, ...]) -> bool:
    if isinstance(source, bytes):
        return any(mark in source for mark in marks)
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return any(data.find(mark) >= 0 for mark in marks)
