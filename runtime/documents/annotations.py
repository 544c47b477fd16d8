"""Annotations without an appearance get one, like poppler's: ink, lines, polygons and borders of links here, texts in
``notes``.

pdfium itself draws highlights, squares and circles. Called by worker processes only.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pypdfium2.raw as pdfium_c

from .notes import TEXTS, write
from .strokes import Point, Stroke, Style, measured, with_ends

_MOST_POINTS = 100_000  # points of an annotation
_KINDS = (
    pdfium_c.FPDF_ANNOT_INK, pdfium_c.FPDF_ANNOT_LINE, pdfium_c.FPDF_ANNOT_POLYGON, pdfium_c.FPDF_ANNOT_POLYLINE,
    pdfium_c.FPDF_ANNOT_LINK,
)  # fmt: skip
_STYLED = (b"BS", b"LE", b"LL", b"Border")  # entries that pdfium does not tell in full

Entries = Callable[[int], dict[str, Any]]  # number of an annotation -> its dictionary (see ``structure``)


def give_appearances(document: Any, page: Any, entries: Entries) -> None:
    """Add missing appearances to an opened page, before the page is drawn. document, page : pdfium's handles."""
    for index in range(pdfium_c.FPDFPage_GetAnnotCount(page)):
        annotation = pdfium_c.FPDFPage_GetAnnot(page, index)
        if annotation:
            with contextlib.closing(_Annotation(annotation)) as opened:
                if opened.kind in TEXTS and opened.is_seen():
                    write(document, page, annotation, entries(index))
                elif opened.kind in _KINDS:
                    opened.give_appearance(partial(entries, index))


class _Annotation:
    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.kind = pdfium_c.FPDFAnnot_GetSubtype(handle)

    def close(self) -> None:
        pdfium_c.FPDFPage_CloseAnnot(self._handle)

    def is_seen(self) -> bool:
        """Whether the annotation is shown on a screen."""
        hidden = pdfium_c.FPDF_ANNOT_FLAG_HIDDEN | pdfium_c.FPDF_ANNOT_FLAG_NOVIEW
        return not pdfium_c.FPDFAnnot_GetFlags(self._handle) & hidden

    def give_appearance(self, entries: Callable[[], dict[str, Any]]) -> None:
        """Add the strokes. entries : the annotation's dictionary."""
        # An empty appearance has 2 bytes: the terminating zero in UTF-16.
        if pdfium_c.FPDFAnnot_GetAP(self._handle, 0, None, 0) > 2:
            return
        styled = any(pdfium_c.FPDFAnnot_HasKey(self._handle, key) for key in _STYLED)
        style = Style.of(entries() if styled else {}, self._width())
        strokes = [stroke for stroke in self._strokes(style) if len(stroke.points) > 1]
        if not strokes:
            return
        # pdfium names the state with the annotation's opacity GS, where the annotation has one.
        content = ["/GS gs"] if pdfium_c.FPDFAnnot_HasKey(self._handle, b"CA") else []
        content += [f"{style.width:g} w", self._colour(pdfium_c.FPDFANNOT_COLORTYPE_Color, "RG")]
        if style.dash:
            content.append(f"[{' '.join(f'{length:g}' for length in style.dash)}] 0 d")
        filled = self.kind != pdfium_c.FPDF_ANNOT_LINK and pdfium_c.FPDFAnnot_HasKey(self._handle, b"IC")
        if filled:
            content.append(self._colour(pdfium_c.FPDFANNOT_COLORTYPE_InteriorColor, "rg"))
        for stroke in strokes:
            content += [f"{x:.4f} {y:.4f} {'l' if number else 'm'}" for number, (x, y) in enumerate(stroke.points)]
            if filled and stroke.closed:
                content.append("b" if style.width else "f")
            else:
                content.append(("s" if stroke.closed else "S") if style.width else "n")
        self._widen(strokes, style.width)
        encoded = ("\n".join(content) + "\0").encode("utf-16-le")
        text = (pdfium_c.FPDF_WCHAR * (len(encoded) // 2)).from_buffer_copy(encoded)
        pdfium_c.FPDFAnnot_SetAP(self._handle, 0, text)

    def _strokes(self, style: Style) -> Iterator[Stroke]:
        """The annotation's strokes, in points of the page."""
        handle = self._handle
        if self.kind == pdfium_c.FPDF_ANNOT_LINE:
            start, end = pdfium_c.FS_POINTF(), pdfium_c.FS_POINTF()
            if pdfium_c.FPDFAnnot_GetLine(handle, start, end):
                yield from measured((start.x, start.y), (end.x, end.y), style)
        elif self.kind == pdfium_c.FPDF_ANNOT_INK:
            for path in range(min(pdfium_c.FPDFAnnot_GetInkListCount(handle), _MOST_POINTS)):
                yield Stroke(_points(partial(pdfium_c.FPDFAnnot_GetInkListPath, handle, path)))
        elif self.kind == pdfium_c.FPDF_ANNOT_LINK:
            if style.width:
                yield self._border(style)
        elif self.kind == pdfium_c.FPDF_ANNOT_POLYGON:
            yield Stroke(_points(partial(pdfium_c.FPDFAnnot_GetVertices, handle)), closed=True)
        else:
            yield from with_ends(_points(partial(pdfium_c.FPDFAnnot_GetVertices, handle)), style)

    def _border(self, style: Style) -> Stroke:
        """The border on the edges of the annotation's rectangle."""
        rect = self._rect()
        corners = [(rect.left, rect.bottom), (rect.right, rect.bottom), (rect.right, rect.top), (rect.left, rect.top)]
        return Stroke(corners[:2]) if style.under else Stroke(corners, closed=True)

    def _rect(self) -> Any:
        rect = pdfium_c.FS_RECTF()
        pdfium_c.FPDFAnnot_GetRect(self._handle, rect)
        return rect

    def _colour(self, kind: int, operator: str) -> str:
        parts = [ctypes.c_uint() for _ in range(4)]
        if not pdfium_c.FPDFAnnot_GetColor(self._handle, kind, *parts):
            return f"0 0 0 {operator}"
        return " ".join(f"{part.value / 255:.4f}" for part in parts[:3]) + f" {operator}"

    def _width(self) -> float:
        """Width of the stroke in points, by the older of the entries about borders."""
        horizontal, vertical, width = ctypes.c_float(), ctypes.c_float(), ctypes.c_float(1.0)
        if not pdfium_c.FPDFAnnot_GetBorder(self._handle, horizontal, vertical, width):
            return 1.0
        return max(0.0, width.value)

    def _widen(self, strokes: Sequence[Stroke], width: float) -> None:
        """Widen the annotation's rectangle, which clips the appearance, to hold all strokes."""
        rect = self._rect()
        across, up = zip(*(point for stroke in strokes for point in stroke.points), strict=True)
        rect.left, rect.right = min(rect.left, min(across) - width), max(rect.right, max(across) + width)
        rect.bottom, rect.top = min(rect.bottom, min(up) - width), max(rect.top, max(up) + width)
        pdfium_c.FPDFAnnot_SetRect(self._handle, rect)


def _points(read: Any) -> Sequence[Point]:
    """The points that a pdfium function writes into a buffer; a first call of that function returns their number."""
    count = min(int(read(None, 0)), _MOST_POINTS)
    buffer = (pdfium_c.FS_POINTF * max(1, count))()
    read(buffer, count)
    return [(point.x, point.y) for point in buffer[:count]]
