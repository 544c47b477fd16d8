"""The machine's fonts by the characters that they hold, as fontconfig knows them.

Used by worker processes for text whose fonts a PDF does not hold, and by ``ocr-onnx doctor``.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_SECONDS = 10.0  # seconds for fontconfig, which may read all fonts the first time
_MOST_LETTERS = 64  # code points in one question
_NOTO, _CJK = "fonts-noto-core", "fonts-noto-cjk"  # package names of Debian and Ubuntu


@dataclass(frozen=True)
class Script:
    """A script, letters that every font of the script has, and the package that brings a font."""

    name: str
    letters: str
    ranges: tuple[tuple[int, int], ...]  # first and last code points
    package: str


SCRIPTS = (
    Script("Latin", "AzÄłęŻ", ((0x20, 0x24F), (0x1E00, 0x1EFF)), "fonts-dejavu-core"),
    Script("Greek", "Ωαλ", ((0x370, 0x3FF), (0x1F00, 0x1FFF)), "fonts-dejavu-core"),
    Script("Cyrillic", "Жяю", ((0x400, 0x52F),), "fonts-dejavu-core"),
    Script("Armenian", "Աբգ", ((0x530, 0x58F),), _NOTO),
    Script("Hebrew", "אבש", ((0x590, 0x5FF),), _NOTO),
    Script("Arabic", "ابش", ((0x600, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)), _NOTO),
    Script("Devanagari", "कखग", ((0x900, 0x97F),), _NOTO),
    Script("Bengali", "কখগ", ((0x980, 0x9FF),), _NOTO),
    Script("Gujarati", "કખગ", ((0xA80, 0xAFF),), _NOTO),
    Script("Tamil", "கஙச", ((0xB80, 0xBFF),), _NOTO),
    Script("Telugu", "కఖగ", ((0xC00, 0xC7F),), _NOTO),
    Script("Thai", "กขค", ((0xE00, 0xE7F),), _NOTO),
    Script("Georgian", "აბგ", ((0x10A0, 0x10FF),), _NOTO),
    Script("Ethiopic", "ሀለሐ", ((0x1200, 0x137F),), _NOTO),
    Script("Japanese", "あアの", ((0x3040, 0x30FF),), _CJK),
    Script("Korean", "가한글", ((0x1100, 0x11FF), (0xAC00, 0xD7AF)), _CJK),
    Script("Chinese", "中文档測", ((0x3000, 0x303F), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)), _CJK),
)  # fmt: skip
CHINESE_JAPANESE_KOREAN = frozenset(script.name for script in SCRIPTS if script.package == _CJK)


def script_of(letter: int) -> Script | None:
    """The script of a code point; None for signs and for scripts that are not listed."""
    return next((one for one in SCRIPTS if any(first <= letter <= last for first, last in one.ranges)), None)


@dataclass(frozen=True)
class Face:
    """A font file, and which of its fonts is meant."""

    path: Path
    index: int


def has_fontconfig() -> bool:
    """Whether fontconfig is installed."""
    return shutil.which("fc-match") is not None


def face_for(family: str, letters: Collection[int], *, bold: bool = False, italic: bool = False) -> Face | None:
    """The font nearest to ``family`` that holds at least one of the code points; None where there is none."""
    wanted = sorted(letters)[:_MOST_LETTERS]
    plain = "".join(sign for sign in family if sign.isalnum() or sign == " ")
    style = (":bold" if bold else "") + (":italic" if italic else "")
    return _matched(f"{plain}{style}:charset={' '.join(f'{letter:x}' for letter in wanted)}", tuple(wanted))


def missing_scripts() -> list[Script]:
    """Scripts for which this machine has no font."""
    return [script for script in SCRIPTS if face_for("sans", [*map(ord, script.letters)]) is None]


@cache
def _matched(pattern: str, letters: tuple[int, ...]) -> Face | None:
    command = ["fc-match", "-f", "%{file}\n%{index}\n%{charset}", pattern]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
        file, index, held = answer.split("\n")
        if any(letter in span for span in _spans(held.split()) for letter in letters):
            return Face(Path(file), int(index) & 0xFFFF)  # the upper bits name an instance of a variable font
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return None


def _spans(words: Iterable[str]) -> list[range]:
    """``20-7e a0`` as fontconfig writes sets of code points."""
    ends = [word.partition("-") for word in words]
    return [range(int(first, 16), int(last or first, 16) + 1) for first, _, last in ends]
