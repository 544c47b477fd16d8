"""The scripts that pages are written in: their words, and fonts that training has and such that only measuring has.

Latin comes from the packages of ``tools.train_tiny``, the others from fonts of this machine (fontconfig); a script
without two families is written in training only. Chinese, Japanese and Korean have the characters of their countries'
old standards, which are the usual ones.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice

from PIL import ImageFont

from runtime.documents.fonts import SCRIPTS
from tools.train_tiny import fonts as latin_fonts
from tools.train_tiny import text

KNOWN = ("Latin", "Cyrillic", "Greek", "Chinese", "Japanese", "Korean")  # that are told up from down
FOREIGN = tuple(script.name for script in SCRIPTS if script.name not in KNOWN)  # to be left alone
_WORD_LISTS = {"Cyrillic": ("ru",), "Arabic": ("ar", "fa")}
_LATIN_KINDS = ("words", "prose", "latin", "latin", "receipt", "figures", "code", "words", "prose")
_GREEK = (
    "αααααααααααεεεεεεεεηηηηηηθθιιιιιιιικκκκλλλμμμννννννξοοοοοοοοοπππππρρρρρσσσσσςςςςςτττττττττυυυυφχψωωωάέήίόύώγγβδδδζ"
)
_UNSPACED = ("Chinese", "Japanese", "Thai")
_HELD_OUT_SYSTEM = ("Serif", "Nimbus", "Lato", "Looped", "Kufi", "Rashi", "Nastaliq")  # in names of measuring's fonts


@dataclass(frozen=True)
class Face:
    """A font file, and which of its fonts is meant; or one of ``tools.train_tiny``'s faces."""

    path: str
    index: int = 0
    own: latin_fonts.FontFace | None = None
    layout: ImageFont.Layout = ImageFont.Layout.BASIC

    def load(self, size: int) -> ImageFont.FreeTypeFont:
        """The font, ``size`` pixels high."""
        if self.own is not None:
            return latin_fonts.load_face(self.own, size)
        return ImageFont.truetype(self.path, size, self.index, layout_engine=self.layout)


@cache
def faces(script: str, held_out: bool) -> tuple[Face, ...]:
    """Fonts of a script; none where this machine has none that is not another purpose's."""
    if script == "Latin":
        families = latin_fonts.faces_of(latin_fonts.HELD_OUT_FAMILIES if held_out else latin_fonts.TRAIN_FAMILIES)
        return tuple(Face("", 0, face) for family in sorted(families) for face in families[family])
    if shutil.which("fc-list") is None:
        return ()
    letters = " ".join(f"{ord(letter):x}" for letter in next(one for one in SCRIPTS if one.name == script).letters)
    command = ["fc-list", "-f", "%{family[0]}|%{file}|%{index}\n", f":charset={letters}:scalable=true"]
    listed = sorted(set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()))
    found = []
    layout = ImageFont.Layout.BASIC if script in KNOWN else ImageFont.Layout.RAQM  # which joins letters
    for line in listed:
        family, path, index = line.split("|")
        if held_out == any(name in family for name in _HELD_OUT_SYSTEM):
            found.append(Face(path, int(index) & 0xFFFF, layout=layout))
    return tuple(found)


def words(script: str, rng: random.Random, held_out: bool) -> Iterator[str]:
    """Words without end."""
    if script == "Latin":
        for word in text.KINDS[rng.choice(_LATIN_KINDS)](rng, held_out):
            yield word.removesuffix(text.LINE_END)
    pool = _pool(script, held_out)
    while True:
        kind = rng.random()
        if kind < 0.08:
            yield text.number(rng)
        elif isinstance(pool, tuple):
            word = rng.choice(pool)
            yield word.upper() if kind < 0.12 else word.capitalize() if kind < 0.3 else word
        else:
            yield "".join(rng.choices(pool, k=rng.randint(1, 9))) + rng.choice(("", "", "", "", ",", "."))


def gap(script: str) -> str:
    """What stands between words."""
    return "" if script in _UNSPACED else " "


@cache
def _pool(script: str, held_out: bool) -> str | tuple[str, ...]:
    """Words, or letters that words are made of."""
    if script in _WORD_LISTS:
        found: list[str] = []
        for language in _WORD_LISTS[script]:
            known = (word for word in text.word_list(language) if len(word) < 18)
            found += [word for word in islice(known, 20_000) if text.is_held_out(word) == held_out]
        return tuple(found)
    if script == "Greek":
        return _GREEK
    if script == "Chinese":
        return _standard("gb2312", range(0xB0, 0xD8))
    if script == "Korean":
        return _standard("euc_kr", range(0xB0, 0xC9))
    if script == "Japanese":
        kana = "".join(map(chr, (*range(0x3041, 0x3094), *range(0x30A1, 0x30F5))))
        return kana * 12 + _standard("euc_jp", range(0xB0, 0xD0))
    ranges = next(one for one in SCRIPTS if one.name == script).ranges
    return "".join(
        letter for first, last in ranges[:1] for letter in map(chr, range(first, last + 1)) if letter.isalpha()
    )


def _standard(codec: str, rows: range) -> str:
    return "".join(bytes((row, cell)).decode(codec, "ignore") for row in rows for cell in range(0xA1, 0xFF))
