"""Texts that annotations hold without drawing them: free text and stamps.

pdfium draws one line of a free text, cut off at its border. The texts are added to the opened page, under the
annotations, and not to the file. Called by worker processes only.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import pypdfium2.raw as pdfium_c

from .fonts import face_for
from .strokes import Point, Stroke, Style, with_ends

TEXTS = (pdfium_c.FPDF_ANNOT_FREETEXT, pdfium_c.FPDF_ANNOT_STAMP)
_MOST_LETTERS = 5_000  # letters of a text
_SIZE = 10.0  # points of a text whose size the file does not give
_SIZES = (1.0, 500.0)  # smallest and largest size of a text, in points
_LEADING = 1.15  # distance of lines, in sizes of the text
_ASCENT = 0.9  # height of the first line's letters, in sizes of the text
_STAMP_SHARE = 0.6  # of a stamp's rectangle for its letters, at most
_FONT = re.compile(r"/\S+\s+(-?[\d.]+)\s+Tf")
_COLOUR = re.compile(r"((?:-?[\d.]+\s+){1,4})(g|rg|k)\b")

Colour = tuple[int, int, int]


def write(document: Any, page: Any, annotation: Any, entries: dict[str, Any]) -> None:
    """Write an annotation's text onto the page, if the file has no appearance of it.

    document, page, annotation : pdfium's handles. entries : the annotation's dictionary (see ``structure``).
    """
    if not entries or "/AP" in entries:
        return
    rect = pdfium_c.FS_RECTF()
    if not pdfium_c.FPDFAnnot_GetRect(annotation, rect) or rect.right <= rect.left or rect.top <= rect.bottom:
        return
    opacity = entries.get("/CA", 1.0)
    opacity = round(255 * min(max(opacity, 0.0), 1.0)) if isinstance(opacity, float) else 255
    sheet = _Sheet(document, page, opacity)
    if pdfium_c.FPDFAnnot_GetSubtype(annotation) == pdfium_c.FPDF_ANNOT_STAMP:
        _stamp(sheet, rect, entries)
    else:
        _free_text(sheet, rect, entries)
    encoded = " \0".encode("utf-16-le")  # instead of the appearance that pdfium would make
    pdfium_c.FPDFAnnot_SetAP(annotation, 0, (pdfium_c.FPDF_WCHAR * 2).from_buffer_copy(encoded))


def _stamp(sheet: _Sheet, rect: Any, entries: dict[str, Any]) -> None:
    """A frame with the stamp's name: /NotApproved is "Not Approved"."""
    name = str(entries.get("/Name", "/Draft")).removeprefix("/")[:100]
    words = " ".join(_lines(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name), lambda longer: True))
    width, height = rect.right - rect.left, rect.top - rect.bottom
    colour = _colour(entries.get("/C"), (60, 60, 60))
    stroke = min(width, height) / 30
    left, bottom, right, top = (rect.left + stroke, rect.bottom + stroke, rect.right - stroke, rect.top - stroke)
    frame = Stroke([(left, bottom), (right, bottom), (right, top), (left, top)], closed=True)
    sheet.stroke([frame], Style(width=stroke), colour, None)
    size = height * _STAMP_SHARE
    wide = sheet.width_of(words, size)
    if wide > width * 0.9:
        size *= width * 0.9 / wide
    x = (rect.left + rect.right - sheet.width_of(words, size)) / 2
    sheet.write(words, size, (x, (rect.bottom + rect.top) / 2 - size * 0.35), colour)


def _free_text(sheet: _Sheet, rect: Any, entries: dict[str, Any]) -> None:
    """A text in its box, from the top, with the box's border and background, and the line of a callout."""
    drawing = str(entries.get("/DA", ""))
    style = Style.of(entries, 1.0)
    colour = _drawing_colour(drawing)
    inset = entries.get("/RD")
    inset = [max(0.0, one) for one in inset] if _are_numbers(inset, 4) else [0.0] * 4
    left, bottom = rect.left + inset[0], rect.bottom + inset[1]
    right, top = rect.right - inset[2], rect.top - inset[3]
    half = style.width / 2
    corners = [(left + half, bottom + half), (right - half, bottom + half), (right - half, top - half),
               (left + half, top - half)]  # fmt: skip
    background = entries.get("/C")
    if entries.get("/IT") != "/FreeTextTypeWriter":
        sheet.stroke([Stroke(corners, closed=True)], style, colour, _colour(background, None) if background else None)
    callout = entries.get("/CL")
    if _are_numbers(callout, 4) or _are_numbers(callout, 6):
        points = list(zip(callout[::2], callout[1::2], strict=True))
        sheet.stroke(with_ends(points, style), style, colour, None)
    found = _FONT.search(drawing)
    size = _as_number(found[1]) if found else 0.0
    size = min(max(size, _SIZES[0]), _SIZES[1]) if size else _SIZE
    text = str(entries.get("/Contents", ""))[:_MOST_LETTERS]
    room = right - left - 2 * style.width - 2
    base = top - style.width - size * _ASCENT
    for line in _lines(text, lambda words: sheet.width_of(words, size) <= room):
        spare = room - sheet.width_of(line, size)
        x = left + style.width + 1 + max(0.0, spare * {1.0: 0.5, 2.0: 1.0}.get(entries.get("/Q", 0.0), 0.0))
        sheet.write(line, size, (x, base), colour)
        base -= size * _LEADING


def _lines(text: str, fits: Any) -> Iterator[str]:
    """The text broken at its own ends of lines, and at blanks where a line would not fit."""
    for paragraph in re.split(r"\r\n|[\r\n]", text):
        line = ""
        # pdfium crashes on a text of control characters alone.
        for word in "".join(letter if letter.isprintable() else " " for letter in paragraph).split():
            longer = f"{line} {word}".strip()
            if line and not fits(longer):
                yield line
                longer = word
            line = longer
        yield line


class _Sheet:
    """Adds objects to an opened page of pdfium's."""

    def __init__(self, document: Any, page: Any, opacity: int) -> None:
        """opacity : 0 to 255."""
        self._document, self._page, self._opacity = document, page, opacity

    def stroke(self, strokes: Sequence[Stroke], style: Style, colour: Colour, inside: Colour | None) -> None:
        """Add paths. inside : colour of closed paths."""
        for stroke in strokes:
            path = pdfium_c.FPDFPageObj_CreateNewPath(*stroke.points[0])
            for x, y in stroke.points[1:]:
                pdfium_c.FPDFPath_LineTo(path, x, y)
            if stroke.closed:
                pdfium_c.FPDFPath_Close(path)
            if inside is not None:
                pdfium_c.FPDFPageObj_SetFillColor(path, *inside, self._opacity)
            pdfium_c.FPDFPageObj_SetStrokeColor(path, *colour, self._opacity)
            pdfium_c.FPDFPageObj_SetStrokeWidth(path, style.width)
            if style.dash:
                lengths = (ctypes.c_float * len(style.dash))(*style.dash)
                pdfium_c.FPDFPageObj_SetDashArray(path, lengths, len(style.dash), 0.0)
            filled = stroke.closed and inside is not None
            mode = pdfium_c.FPDF_FILLMODE_ALTERNATE if filled else pdfium_c.FPDF_FILLMODE_NONE
            pdfium_c.FPDFPath_SetDrawMode(path, mode, style.width > 0)
            pdfium_c.FPDFPage_InsertObject(self._page, path)

    def write(self, words: str, size: float, place: Point, colour: Colour) -> None:
        """Add a line of text. place : the left end of its base line."""
        if not words.strip():
            return
        thing = self._text(words, size)
        pdfium_c.FPDFPageObj_SetFillColor(thing, *colour, self._opacity)
        pdfium_c.FPDFPageObj_Transform(thing, 1, 0, 0, 1, *place)
        pdfium_c.FPDFPage_InsertObject(self._page, thing)

    def width_of(self, words: str, size: float) -> float:
        """Width of a line of text, in points."""
        if not words.strip():
            return 0.0
        thing = self._text(words, size)
        sides = [ctypes.c_float() for _ in range(4)]
        pdfium_c.FPDFPageObj_GetBounds(thing, *sides)
        pdfium_c.FPDFPageObj_Destroy(thing)
        return sides[2].value - sides[0].value

    def _text(self, words: str, size: float) -> Any:
        """A text object, in Helvetica, or in a font of the machine that has the letters."""
        font = self._font(words)
        thing = pdfium_c.FPDFPageObj_CreateTextObj(self._document, font, size)
        pdfium_c.FPDFFont_Close(font)  # the object keeps the font
        encoded = (words + "\0").encode("utf-16-le", "replace")
        text = (pdfium_c.FPDF_WCHAR * (len(encoded) // 2)).from_buffer_copy(encoded)
        pdfium_c.FPDFText_SetText(thing, text)
        return thing

    def _font(self, words: str) -> Any:
        other = {ord(letter) for letter in words if not letter.isascii()}
        face = face_for("sans", other) if other else None
        if face is not None:  # the fonts of one file have the same letters
            data = face.path.read_bytes()
            buffer = (ctypes.c_ubyte * len(data)).from_buffer_copy(data)
            font = pdfium_c.FPDFText_LoadFont(self._document, buffer, len(data), pdfium_c.FPDF_FONT_TRUETYPE, 1)
            if font:
                return font
        return pdfium_c.FPDFText_LoadStandardFont(self._document, b"Helvetica")


def _drawing_colour(drawing: str) -> Colour:
    """The colour in a default appearance, such as ``/Helv 12 Tf 1 0 0 rg``; black without one."""
    found = _COLOUR.search(drawing)
    parts = [_as_number(part) for part in found[1].split()] if found else []
    colour: Colour = _colour(parts, (0, 0, 0))
    return colour


def _colour(parts: Any, default: Any) -> Any:
    """Grey, RGB or CMYK, from 0 to 1, as RGB from 0 to 255."""
    if not isinstance(parts, list) or len(parts) not in (1, 3, 4) or not _are_numbers(parts, len(parts)):
        return default
    parts = [min(max(part, 0.0), 1.0) for part in parts]
    if len(parts) == 4:
        parts = [(1 - part) * (1 - parts[3]) for part in parts[:3]]
    return tuple(round(255 * part) for part in (parts if len(parts) == 3 else parts * 3))


def _are_numbers(value: Any, count: int) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) == count and all(isinstance(one, float) for one in value)


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # "1.2.3"
        return 0.0
