"""Gives pdfium the machine's fonts for text whose font a PDF does not hold.

pdfium's own choice goes by the fonts' names, and it falls back to fonts inside it that hold Western letters only. That
choice stands until a page lacks letters (``glyphs``); for these, fontconfig is asked. Used by worker processes only.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from typing import Any

import pypdfium2.raw as pdfium_c

from .fonts import CHINESE_JAPANESE_KOREAN, Face, face_for, script_of

_COLLECTION = 0x74746366  # "ttcf", the table of pdfium's question for a file of several fonts
_CJK_CHARSETS = (128, 129, 134, 136)  # Shift-JIS, Hangul, GB2312, Big5
_BOLD = 600  # weights of bold fonts


class FontMapper:
    """Stands between pdfium and its own choice of fonts for as long as the process lives."""

    def __init__(self) -> None:
        self.needed: frozenset[int] = frozenset()  # code points that pages were found to lack
        self.lacking: frozenset[str] = frozenset()  # names of the fonts that these pages ask for
        self._default = pdfium_c.FPDF_GetDefaultSystemFontInfo()
        self._own: dict[int, tuple[Any, int]] = {}  # handle -> the file's bytes, and where the font begins
        self._handles: dict[Face, int] = {}
        self._info = pdfium_c.FPDF_SYSFONTINFO(version=1)
        types = dict(pdfium_c.FPDF_SYSFONTINFO._fields_)
        for name in ("Release", "EnumFonts", "MapFont", "GetFont", "GetFontData", "GetFaceName", "GetFontCharset",
                     "DeleteFont"):  # fmt: skip
            setattr(self._info, name, types[name](getattr(self, f"_{name}")))
        pdfium_c.FPDF_SetSystemFontInfo(self._info)

    def _theirs(self, name: str, *arguments: Any) -> Any:
        return getattr(self._default.contents, name)(self._default, *arguments)

    # Callbacks under pdfium's names. The first argument is the structure itself.

    def _Release(self, info: Any) -> None:
        """Nothing to free: the mapper lives as long as the process."""

    def _EnumFonts(self, info: Any, mapper: Any) -> None:
        self._theirs("EnumFonts", mapper)

    def _MapFont(
        self, info: Any, weight: int, italic: int, charset: int, pitch: int, face: Any, exact: Any
    ) -> int | None:
        wide = charset in _CJK_CHARSETS
        name = (ctypes.cast(face, ctypes.c_char_p).value or b"").decode("latin-1")
        # A font that names no character set may hold letters of every width.
        letters = {letter for letter in self.needed if _is_wide(letter) == wide or name in self.lacking}
        if letters:
            found = face_for(name, letters, bold=weight >= _BOLD, italic=bool(italic))
            if found is not None and (handle := self._opened(found)) is not None:
                return handle
        theirs: int | None = self._theirs("MapFont", weight, italic, charset, pitch, face, exact)
        return theirs

    def _GetFont(self, info: Any, face: Any) -> int | None:
        theirs: int | None = self._theirs("GetFont", face)
        return theirs

    def _GetFontData(self, info: Any, font: int, table: int, buffer: Any, size: int) -> int:
        if font not in self._own:
            return int(self._theirs("GetFontData", font, table, buffer, size))
        data, start = self._own[font]
        is_collection = bytes(data[:4]) == b"ttcf"
        if table == _COLLECTION:
            length, first = (len(data), 0) if is_collection else (0, 0)
        elif table == 0:
            length, first = len(data) - start, start
        else:
            return 0
        if length and size >= length:
            ctypes.memmove(buffer, ctypes.addressof(data) + first, length)
        return length

    def _GetFaceName(self, info: Any, font: int, buffer: Any, size: int) -> int:
        return 0 if font in self._own else int(self._theirs("GetFaceName", font, buffer, size))

    def _GetFontCharset(self, info: Any, font: int) -> int:
        return 1 if font in self._own else int(self._theirs("GetFontCharset", font))  # 1: unknown character set

    def _DeleteFont(self, info: Any, font: int) -> None:
        if font not in self._own:  # our fonts are kept: the next page needs the same
            self._theirs("DeleteFont", font)

    def _opened(self, face: Face) -> int | None:
        """A handle of a font file; None for a file that cannot be read."""
        if face not in self._handles:
            try:
                content = face.path.read_bytes()
            except OSError:
                return None
            start = 0
            if content[:4] == b"ttcf":
                start = struct.unpack_from(">I", content, 12 + 4 * face.index)[0]
            data = (ctypes.c_ubyte * len(content)).from_buffer_copy(content)
            self._handles[face] = ctypes.addressof(data)
            self._own[ctypes.addressof(data)] = data, start
        return self._handles[face]


@cache
def mapper() -> FontMapper:
    """The mapper of this process; pdfium's library must have been started."""
    return FontMapper()


def _is_wide(letter: int) -> bool:
    script = script_of(letter)
    return script is not None and script.name in CHINESE_JAPANESE_KOREAN
