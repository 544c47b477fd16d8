"""The invisible text of PDF pages: words in their places, in one font without glyphs for every script.

The font is embedded, and its map to Unicode has the characters in use, so that every PDF reader finds, selects and
copies the text. Nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import pikepdf
from pikepdf import Array, Dictionary, Name

from .placing import Area, Line, runs_backwards

FONT = Name.OcrText  # the font's name in pages
_NAME = Name.OcrGlyphless
# Thousandths of the font's size; tools/glyphless.py makes the font of them.
_ASCENT, _DESCENT, _WIDTH = 800, -200, 500
_LAST = 0xFFFF


class GlyphlessFont:
    """Numbers characters on first use, from 1: glyph 0 is a font's missing glyph."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def encoded(self, text: str) -> bytes:
        """Text encoded for a page's operators. Characters after a document's 65,535th become blanks."""
        return b"".join(self._number(letter).to_bytes(2, "big") for letter in text)

    def _number(self, letter: str) -> int:
        if letter not in self._numbers and len(self._numbers) == _LAST:
            letter = " " if " " in self._numbers else next(iter(self._numbers))
        return self._numbers.setdefault(letter, len(self._numbers) + 1)

    def embedded(self, pdf: pikepdf.Pdf) -> pikepdf.Object:
        """Embed the font in a document, after all its text has been encoded."""
        program = pdf.make_stream(resources.files(__package__).joinpath("glyphless.ttf").read_bytes())
        program.Length1 = len(program.read_bytes())
        descriptor = Dictionary(
            Type=Name.FontDescriptor, FontName=_NAME, Flags=5, FontBBox=Array([0, _DESCENT, _WIDTH, _ASCENT]),
            ItalicAngle=0, Ascent=_ASCENT, Descent=_DESCENT, CapHeight=_ASCENT, StemV=80, FontFile2=program,
        )  # fmt: skip
        descendant = Dictionary(
            Type=Name.Font, Subtype=Name.CIDFontType2, BaseFont=_NAME, DW=_WIDTH,
            CIDSystemInfo=Dictionary(Registry=b"Adobe", Ordering=b"Identity", Supplement=0),
            CIDToGIDMap=pdf.make_stream(b"\0\0" + b"\0\1" * _LAST),  # every character has the one glyph
            FontDescriptor=pdf.make_indirect(descriptor),
        )  # fmt: skip
        font = Dictionary(
            Type=Name.Font, Subtype=Name.Type0, BaseFont=_NAME, Encoding=Name("/Identity-H"),
            DescendantFonts=Array([pdf.make_indirect(descendant)]), ToUnicode=pdf.make_stream(self._to_unicode()),
        )  # fmt: skip
        return pdf.make_indirect(font)

    def _to_unicode(self) -> bytes:
        entries = [f"<{n:04x}> <{letter.encode('utf-16-be').hex()}>" for letter, n in self._numbers.items()]
        sections = []
        for first in range(0, len(entries), 100):  # no section may have more
            some = entries[first : first + 100]
            sections += [f"{len(some)} beginbfchar", *some, "endbfchar"]
        return "\n".join([_CMAP_HEAD, *sections, _CMAP_TAIL]).encode("ascii")


_CMAP_HEAD = """\
/CIDInit /ProcSet findresource begin
12 dict begin
begincmap
/CIDSystemInfo << /Registry (Adobe) /Ordering (UCS) /Supplement 0 >> def
/CMapName /Adobe-Identity-UCS def
/CMapType 2 def
1 begincodespacerange
<0000> <ffff>
endcodespacerange"""
_CMAP_TAIL = """\
endcmap
CMapName currentdict /CMap defineresource pop
end
end"""


def text_operators(areas: Sequence[Area], height: float, font: GlyphlessFont, matrix: Sequence[float]) -> bytes:
    """The operators that draw a page's words, invisibly.

    height : of the page, in the areas' pixels. matrix : from these pixels, counted from the lower left corner, to the
    page's own coordinates, in the order of the operator ``cm``.
    """
    lines = [line for area in areas for line in area.lines]
    if not lines:
        return b""
    out = [b"q", _numbers(*matrix) + b" cm", b"BT", b"3 Tr"]
    for line in lines:
        out += _line(line, height, font)
    return b"\n".join([*out, b"ET", b"Q", b""])


def _line(line: Line, height: float, font: GlyphlessFont) -> list[bytes]:
    """The operators of a line's words, each with the blank behind it."""
    size = line.box[3] - line.box[1]
    base = height - line.box[3] - size * _DESCENT / 1000
    out = [bytes(FONT) + b" " + _numbers(size) + b" Tf"]
    # PDF readers take letters from the left, and reverse those of right-to-left scripts.
    for number, word in enumerate(sorted(line.words, key=lambda word: word.box[0]), 1):
        text = word.text[::-1] if runs_backwards(word.text) else word.text
        left, _, right, _ = word.box
        percent = (right - left) / (len(text) * size * _WIDTH / 1000) * 100
        shown = font.encoded(text if number == len(line.words) else f"{text} ")
        out.append(_numbers(percent) + b" Tz")
        out.append(_numbers(1, 0, 0, 1, left, base) + b" Tm")
        out.append(b"<" + shown.hex().encode() + b"> Tj")
    return out


def _numbers(*values: float) -> bytes:
    return " ".join(f"{value:.3f}".rstrip("0").rstrip(".") or "0" for value in values).encode("ascii")
