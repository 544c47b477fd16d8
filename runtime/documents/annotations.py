"""Ink, line and polygon annotations without an appearance get one.

pdfium itself draws highlights, squares and circles. The strokes are like poppler's. Called by worker processes only.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pypdfium2.raw as pdfium_c

_Point = tuple[float, float]
_MOST_POINTS = 100_000  # points of an annotation
_KINDS = (pdfium_c.FPDF_ANNOT_INK, pdfium_c.FPDF_ANNOT_LINE, pdfium_c.FPDF_ANNOT_POLYGON, pdfium_c.FPDF_ANNOT_POLYLINE)


def give_appearances(page: Any, stroke_width: Callable[[int], float | None]) -> None:
    """Add missing appearances to an opened page (pdfium's handle), before the page is drawn.

    stroke_width : the width in the border style of an annotation, counted from 0; pdfium reads only the older /Border.
    """
    for index in range(pdfium_c.FPDFPage_GetAnnotCount(page)):
        annotation = pdfium_c.FPDFPage_GetAnnot(page, index)
        if annotation:
            with contextlib.closing(_Annotation(annotation)) as opened:
                opened.give_appearance(partial(stroke_width, index))


class _Annotation:
    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._kind = pdfium_c.FPDFAnnot_GetSubtype(handle)

    def close(self) -> None:
        pdfium_c.FPDFPage_CloseAnnot(self._handle)

    def give_appearance(self, stroke_width: Callable[[], float | None]) -> None:
        """Add the strokes. ``stroke_width``: see ``give_appearances``."""
        # An empty appearance has 2 bytes: the terminating zero in UTF-16.
        if self._kind not in _KINDS or pdfium_c.FPDFAnnot_GetAP(self._handle, 0, None, 0) > 2:
            return
        paths = [path for path in self._paths() if len(path) > 1]
        if not paths:
            return
        closed = self._kind == pdfium_c.FPDF_ANNOT_POLYGON
        filled = closed and pdfium_c.FPDFAnnot_HasKey(self._handle, b"IC")
        width = stroke_width() if pdfium_c.FPDFAnnot_HasKey(self._handle, b"BS") else None
        width = self._width() if width is None else max(0.0, width)
        content = [f"{width:g} w", self._colour(pdfium_c.FPDFANNOT_COLORTYPE_Color, "RG")]
        if filled:
            content.append(self._colour(pdfium_c.FPDFANNOT_COLORTYPE_InteriorColor, "rg"))
        for path in paths:
            content += [f"{x:.4f} {y:.4f} {'l' if number else 'm'}" for number, (x, y) in enumerate(path)]
            if filled:
                content.append("b" if width else "f")
            else:
                content.append(("s" if closed else "S") if width else "n")
        self._widen(paths, width)
        encoded = ("\n".join(content) + "\0").encode("utf-16-le")
        text = (pdfium_c.FPDF_WCHAR * (len(encoded) // 2)).from_buffer_copy(encoded)
        pdfium_c.FPDFAnnot_SetAP(self._handle, 0, text)

    def _paths(self) -> Iterator[Sequence[_Point]]:
        """The annotation's strokes, in points of the page."""
        handle = self._handle
        if self._kind == pdfium_c.FPDF_ANNOT_LINE:
            start, end = pdfium_c.FS_POINTF(), pdfium_c.FS_POINTF()
            if pdfium_c.FPDFAnnot_GetLine(handle, start, end):
                yield [(start.x, start.y), (end.x, end.y)]
        elif self._kind == pdfium_c.FPDF_ANNOT_INK:
            for path in range(min(pdfium_c.FPDFAnnot_GetInkListCount(handle), _MOST_POINTS)):
                yield _points(partial(pdfium_c.FPDFAnnot_GetInkListPath, handle, path))
        else:
            yield _points(partial(pdfium_c.FPDFAnnot_GetVertices, handle))

    def _colour(self, kind: int, operator: str) -> str:
        parts = [ctypes.c_uint() for _ in range(4)]
        if not pdfium_c.FPDFAnnot_GetColor(self._handle, kind, *parts):
            return f"0 0 0 {operator}"
        return " ".join(f"{part.value / 255:.4f}" for part in parts[:3]) + f" {operator}"

    def _width(self) -> float:
        """Width of the stroke in points."""
        horizontal, vertical, width = ctypes.c_float(), ctypes.c_float(), ctypes.c_float(1.0)
        if not pdfium_c.FPDFAnnot_GetBorder(self._handle, horizontal, vertical, width):
            return 1.0
        return max(0.0, width.value)

    def _widen(self, paths: Sequence[Sequence[_Point]], width: float) -> None:
        """Widen the annotation's rectangle, which clips the appearance, to hold all strokes."""
        rect = pdfium_c.FS_RECTF()
        pdfium_c.FPDFAnnot_GetRect(self._handle, rect)
        across, up = zip(*(point for path in paths for point in path), strict=True)
        rect.left, rect.right = min(rect.left, min(across) - width), max(rect.right, max(across) + width)
        rect.bottom, rect.top = min(rect.bottom, min(up) - width), max(rect.top, max(up) + width)
        pdfium_c.FPDFAnnot_SetRect(self._handle, rect)


def _points(read: Any) -> Sequence[_Point]:
    """The points that a pdfium function writes into a buffer; a first call of that function returns their number."""
    count = min(int(read(None, 0)), _MOST_POINTS)
    buffer = (pdfium_c.FS_POINTF * max(1, count))()
    read(buffer, count)
    return [(point.x, point.y) for point in buffer[:count]]
