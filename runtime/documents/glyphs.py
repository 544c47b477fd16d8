"""Letters of a page that stay blank, as neither the PDF nor this machine has a font for them.

A glyph is missing where the page's text has a letter and its picture shows nothing. Only fonts outside of the file are
looked at. Called by worker processes only.
"""

from __future__ import annotations

import ctypes
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pypdfium2.raw as pdfium_c
from PIL import Image

from .fonts import script_of

_MOST_LETTERS = 5_000  # letters of a page to look at
_TRIES = 2  # places to look at, of one letter of one font
_LEAST_CONTRAST = 24  # least contrast, of 255, between a letter and its background
_LEAST_WIDTH = 0.01  # least width of a letter, as a share of its height
_WHITE = 230  # a letter of this colour may be invisible on purpose
_DEEPEST = 8  # forms within forms
_INVISIBLE = (pdfium_c.FPDF_TEXTRENDERMODE_INVISIBLE, pdfium_c.FPDF_TEXTRENDERMODE_CLIP)


@dataclass
class Lacking:
    """Letters and fonts that are missing on a page."""

    letters: Counter[int] = field(default_factory=Counter)  # code points; 0 where the file does not name the letter
    fonts: set[str] = field(default_factory=set)
    guessed: Counter[str] = field(default_factory=Counter)  # font -> letters that the file does not name

    def __bool__(self) -> bool:
        return bool(self.letters)

    def warnings(self) -> tuple[str, ...]:
        """Lines for the user."""
        return (*([self._missing()] if self.letters else []), *([self._guessed()] if self.guessed else []))

    def _guessed(self) -> str:
        count, fonts = self.guessed.total(), ", ".join(sorted(self.guessed))[:80]
        return (
            f"{count} letter{'s' * (count != 1)} may be drawn as others: the font {fonts} is not in the file, which "
            "does not say what its letters are; make the PDF anew with its fonts embedded"
        )

    def _missing(self) -> str:
        count, known = self.letters.total(), [letter for letter, _ in self.letters.most_common() if letter]
        example = f", such as {chr(known[0])} (U+{known[0]:04X})" if known else ""
        scripts = [script for script in map(script_of, known) if script is not None]
        name, package = (scripts[0].name, scripts[0].package) if scripts else ("its script", "fonts-noto-core")
        fonts = ", ".join(sorted(self.fonts))[:80]
        return (
            f"{count} letter{'s' * (count != 1)}{example} could not be drawn: the font {fonts} is not in the file, and "
            f"this machine has none for {name} (apt-get install {package})"
        )


def lacking(page: Any, picture: Image.Image) -> Lacking:
    """Find letters that were not drawn. ``page``: pdfium's handle; ``picture``: the whole page, in RGB."""
    found = Lacking()
    text = pdfium_c.FPDFText_LoadPage(page)
    if not text:
        return found
    try:
        covers = _Covers(page)
        tried: dict[tuple[str, int], list[bool]] = {}  # whether a letter was drawn, in the first places where it stands
        outside: dict[int, str | None] = {}  # text object -> name of its font, where the font is not in the file
        for index in range(min(pdfium_c.FPDFText_CountChars(text), _MOST_LETTERS)):
            thing = pdfium_c.FPDFText_GetTextObject(text, index)
            key = ctypes.cast(thing, ctypes.c_void_p).value or 0
            if key not in outside:
                outside[key] = _font_outside(thing) if key else None
            font = outside[key]
            letter = int(pdfium_c.FPDFText_GetUnicode(text, index))
            if font is None or not _is_seen(letter):
                continue
            if pdfium_c.FPDFText_HasUnicodeMapError(text, index) == 1:
                found.guessed[font] += 1
                continue
            tries = tried.setdefault((font, letter), [])
            if len(tries) < _TRIES and not any(tries):
                tries.append(_is_drawn(page, text, index, picture) or covers.hide(key, text, index))
            if not any(tries):
                found.letters[letter if letter < 0xE000 or letter > 0xF8FF else 0] += 1
                found.fonts.add(font)
    finally:
        pdfium_c.FPDFText_ClosePage(text)
    return found


def _font_outside(thing: Any) -> str | None:
    """The name of a text's font; None where the font is in the file, or the text is invisible on purpose."""
    font = pdfium_c.FPDFTextObj_GetFont(thing)
    if not font or pdfium_c.FPDFFont_GetIsEmbedded(font):
        return None
    if pdfium_c.FPDFTextObj_GetTextRenderMode(thing) in _INVISIBLE:
        return None
    colour = [ctypes.c_uint() for _ in range(4)]
    if pdfium_c.FPDFPageObj_GetFillColor(thing, *colour) and min(part.value for part in colour[:3]) >= _WHITE:
        return None
    buffer = ctypes.create_string_buffer(200)
    pdfium_c.FPDFFont_GetBaseFontName(font, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace") or "without a name"


def _is_seen(letter: int) -> bool:
    return unicodedata.category(chr(letter))[0] not in "ZCM" or 0xE000 <= letter <= 0xF8FF


def _is_drawn(page: Any, text: Any, index: int, picture: Image.Image) -> bool:
    """Whether the picture shows anything where the letter stands; true for a letter outside of the page."""
    box = pdfium_c.FS_RECTF()
    if not pdfium_c.FPDFText_GetLooseCharBox(text, index, box):
        return True
    width, height = picture.size
    places = []
    for across, up in ((box.left, box.top), (box.right, box.bottom)):
        x, y = ctypes.c_int(), ctypes.c_int()
        pdfium_c.FPDF_PageToDevice(page, 0, 0, width, height, 0, across, up, x, y)
        places.append((x.value, y.value))
    (x0, y0), (x1, y1) = places
    x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height or y1 - y0 < 3:
        return True
    if x1 - x0 < 2:  # a letter that its font lacks has no width; other letters are too small to be seen
        return bool(box.right - box.left > _LEAST_WIDTH * abs(box.top - box.bottom))
    part = np.asarray(picture.crop((max(0, x0), max(0, y0), min(x1, width), min(y1, height))), np.int16)
    return bool((part.max((0, 1)) - part.min((0, 1))).max() >= _LEAST_CONTRAST)


class _Covers:
    """Objects painted over text: a scan over its recognised words, a bar over a name."""

    def __init__(self, page: Any) -> None:
        self._page = page
        self._order: dict[int, int] | None = None  # object -> its number in the page's order of painting
        self._bounds: list[tuple[int, tuple[float, float, float, float]]] = []  # number; left, bottom, right, top

    def hide(self, thing: int, text: Any, index: int) -> bool:
        """Whether an object painted later covers the letter ``index`` of a text object."""
        box = pdfium_c.FS_RECTF()
        pdfium_c.FPDFText_GetLooseCharBox(text, index, box)
        x, y = (box.left + box.right) / 2, (box.bottom + box.top) / 2
        if self._order is None:
            self._order = {}
            count, at = pdfium_c.FPDFPage_CountObjects(self._page), pdfium_c.FPDFPage_GetObject
            self._number(self._order, [at(self._page, place) for place in range(count)], 0)
        place = self._order.get(thing, 0)
        return any(
            later > place and left <= x <= right and bottom <= y <= top
            for later, (left, bottom, right, top) in self._bounds
        )

    def _number(self, order: dict[int, int], things: list[Any], depth: int) -> None:
        """Number objects in the order of painting; those inside forms have other coordinates and cover nothing."""
        for thing in things:
            order[ctypes.cast(thing, ctypes.c_void_p).value or 0] = len(order)
            if pdfium_c.FPDFPageObj_GetType(thing) == pdfium_c.FPDF_PAGEOBJ_FORM:
                count = pdfium_c.FPDFFormObj_CountObjects(thing) if depth < _DEEPEST else 0
                self._number(order, [pdfium_c.FPDFFormObj_GetObject(thing, place) for place in range(count)], depth + 1)
            elif depth == 0 and _is_opaque(thing):
                sides = [ctypes.c_float() for _ in range(4)]
                if pdfium_c.FPDFPageObj_GetBounds(thing, *sides):
                    left, bottom, right, top = (side.value for side in sides)
                    self._bounds.append((len(order), (left, bottom, right, top)))


def _is_opaque(thing: Any) -> bool:
    """Whether an object fills its bounds, judged by its kind."""
    kind = pdfium_c.FPDFPageObj_GetType(thing)
    if kind != pdfium_c.FPDF_PAGEOBJ_PATH:
        return bool(kind in (pdfium_c.FPDF_PAGEOBJ_IMAGE, pdfium_c.FPDF_PAGEOBJ_SHADING))
    fill, stroke = ctypes.c_int(), ctypes.c_int()
    pdfium_c.FPDFPath_GetDrawMode(thing, fill, stroke)
    return bool(fill.value != pdfium_c.FPDF_FILLMODE_NONE)
