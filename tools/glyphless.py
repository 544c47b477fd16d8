"""Makes server/writers/glyphless.ttf: a font of one glyph that draws nothing, for invisible text of any script.

``python -m tools.glyphless`` writes it. Needs fontTools, which the tests bring along.
"""

from __future__ import annotations

import io
from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib.tables._g_l_y_f import Glyph

PATH = Path(__file__).resolve().parents[1] / "server" / "writers" / "glyphless.ttf"
NAME = "OcrGlyphless"
WIDTH, ASCENT, DESCENT = 500, 800, -200  # thousandths of the font's size


def font() -> bytes:
    """The file; every call gives the same."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "any"])
    builder.setupCharacterMap({0x20: "any"})
    builder.setupGlyf({".notdef": Glyph(), "any": _line()})
    builder.setupHorizontalMetrics({".notdef": (WIDTH, 0), "any": (WIDTH, 0)})
    builder.setupHorizontalHeader(ascent=ASCENT, descent=DESCENT)
    builder.setupNameTable({"familyName": NAME, "styleName": "Regular", "psName": NAME})
    builder.setupOS2(sTypoAscender=ASCENT, sTypoDescender=DESCENT, usWinAscent=ASCENT, usWinDescent=-DESCENT)
    builder.setupPost(keepGlyphNames=False)
    builder.font["head"].created = builder.font["head"].modified = 0
    builder.font.recalcTimestamp = False
    stream = io.BytesIO()
    builder.font.save(stream)
    return stream.getvalue()


def _line() -> Glyph:
    """From corner to corner and back: a glyph that has a box, which some readers ask for, and draws nothing."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, DESCENT))
    pen.lineTo((WIDTH, ASCENT))
    pen.closePath()
    return pen.glyph()


if __name__ == "__main__":
    PATH.write_bytes(font())
