r"""LightOnOCR's answers as Markdown and, where they name places, as blocks.

Without an instruction the model writes Markdown, in which some formulas have escaped dollars (``\$x\$``) and pictures
are links to missing files: ``![image](image_1.png)``, in some variants followed by their box. LightOnOCR-3, asked for
grounding, puts ``![label](x1,y1,x2,y2)`` in front of each block. Places are thousandths of the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pydantic import Field

from models.blocks import Block, Kind, kind_of, on_page
from models.family import IMAGE_SLOT, OutputFilter
from models.family_settings import FamilySettings
from models.grounding import picture_place

TASKS: Mapping[str, str] = MappingProxyType({"markdown": IMAGE_SLOT, "boxes": f"{IMAGE_SLOT}grounding"})
DEFAULT_TASK = "markdown"
PLACES = (1000, 1000)  # an answer gives places as pixels of a page of this size (``PreparedImage.seen``)

# The authors advise against greedy decoding; the values are from their model cards. Rows of tables repeat by nature, so
# no n-gram is forbidden; the loop guard ends loops, which vLLM users report often.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "no_repeat_ngram_size": 0}
)

_NUMBERS = r"([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})"
_MARKER = re.compile(rf"[ \t]*!\[([a-z_]{{1,20}}\+?)\]\(\s*{_NUMBERS}\s*\)[ \t]*")
_PICTURE = re.compile(rf"!\[[^\]\n]{{0,80}}\]\(image_[0-9]{{1,4}}\.(?:png|jpe?g)\)(?:\s?{_NUMBERS})?")
_SPECIAL = re.compile(r"!(?:\[|\Z)|\\(?:\$|\Z)")
_DOLLARS = re.compile(r"\\\$(?=\S)((?:(?!\\\$).){1,400}?)(?<=\S)\\\$(?![0-9])")
_MATHS = re.compile(r"[\\^_{}=<>+]|\A[^0-9]")
_HEADING = re.compile(r"(#{1,6})\s+(.*)", re.DOTALL)
_LEVELS = {"title": 1, "section": 2}
_PAGE_ENDS = ("header", "footer", "page_number")


class OutputSettings(FamilySettings):
    """Settings of answers."""

    page_headers: bool = Field(
        True, description="the text has the page's headers and footers, where a model tells them"
    )


@dataclass
class _Part:
    """One block of an answer while the model writes the block."""

    label: str
    box: tuple[float, float, float, float]  # thousandths of the page
    text: str = ""


@dataclass
class Parts:
    """Parts marked blocks from the plain text before them, line by line.

    Plain text, which has no marker in front, passes through; only its dollars and pictures are changed.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    _held: str = ""  # the beginning of a line
    _begun: bool = False  # some of the line has been given out
    _part: _Part | None = None

    def push(self, text: str) -> list[str | _Part]:
        """Pieces of plain text, and parts that are whole."""
        found: list[str | _Part] = []
        *lines, rest = (self._held + text).split("\n")
        for line in lines:
            found += self._line(line + "\n")
            self._begun = False
        self._held = rest
        if self._part is None and not self._may_be_marked(rest):
            special = _SPECIAL.search(rest)
            certain = special.start() if special else len(rest)
            if certain:
                found.append(rest[:certain])
                self._held, self._begun = rest[certain:], True
        return found

    def finish(self) -> list[str | _Part]:
        found = self._line(self._held) if self._held else []
        last, self._held, self._part = self._part, "", None
        return found if last is None else [*found, last]

    def _may_be_marked(self, line: str) -> bool:
        return not self._begun and line.lstrip(" \t")[:2] in ("", "!", "![")

    def _line(self, line: str) -> list[str | _Part]:
        marker = None if self._begun else _MARKER.match(line)
        if marker is None:
            if self._part is None:
                return [presented(line, self.scale)]
            self._part.text += line
            return []
        done = self._part
        x0, y0, x1, y1 = (float(value) for value in marker.groups()[1:])
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        self._part = _Part(marker[1], box, line[marker.end() :])
        return [] if done is None else [done]


@dataclass
class MarkdownFilter:
    """The output filter: plain Markdown as the model writes it, a marked block when the block is whole."""

    page_headers: bool = True
    scale: tuple[float, float] = (1.0, 1.0)
    _parts: Parts = field(init=False)
    _written: str = ""  # the last characters that were given out

    def __post_init__(self) -> None:
        self._parts = Parts(self.scale)

    def push(self, text: str) -> str:
        return "".join(map(self._piece, self._parts.push(text)))

    def finish(self) -> str:
        return "".join(map(self._piece, self._parts.finish()))

    def _piece(self, found: str | _Part) -> str:
        if isinstance(found, str):
            piece = found
        else:
            block = _block(found)
            if block.kind in _PAGE_ENDS and not self.page_headers:
                return ""
            text = self._markdown(block, found)
            continues = found.label.endswith("+") and self._written
            gap = " " if continues else "\n\n"[: max(0, 2 - (len(self._written) - len(self._written.rstrip("\n"))))]
            piece = gap + text if text and self._written else text
        self._written = (self._written + piece)[-2:]
        return piece

    def _markdown(self, block: Block, part: _Part) -> str:
        if block.kind == "figure":
            return _comment(part.box, self.scale)
        if block.kind == "title":
            return f"{'#' * block.level} {block.text}" if block.text else ""
        return f"$$\n{block.text}\n$$" if block.kind == "formula" and block.text else presented(block.text, self.scale)


def output_filter(
    prompt: str, settings: Mapping[str, Any] = MappingProxyType({}), scale: tuple[float, float] = (1.0, 1.0)
) -> OutputFilter:
    """See ``models.family.Family.output``."""
    return MarkdownFilter(OutputSettings.of(settings).page_headers, scale)


def marked_blocks(text: str, width: int, height: int) -> tuple[Block, ...]:
    """The blocks that an answer marks, with boxes in thousandths (``PLACES``); none for an answer without marks."""
    reader = Parts()
    blocks: list[Block] = []
    for part in (*reader.push(text), *reader.finish()):
        if isinstance(part, str):
            continue
        block = _block(part)
        if part.label.endswith("+") and blocks:
            before = blocks.pop()
            text_of_both = f"{before.text} {block.text}".strip()
            block = Block(before.kind, text_of_both, before.box, before.label, level=before.level)
        blocks.append(block)
    return tuple(blocks)


def presented(text: str, scale: tuple[float, float]) -> str:
    """Markdown with formulas between plain dollars, and pictures as comments with their places where known."""
    return _DOLLARS.sub(_plain_dollars, _PICTURE.sub(lambda found: _picture(found.groups(), scale), text))


def _plain_dollars(found: re.Match[str]) -> str:
    """The dollars of a formula without their backslashes; the dollars of a price keep them."""
    return f"${found[1]}$" if _MATHS.search(found[1]) else found[0]


def _picture(numbers: Sequence[str | None], scale: tuple[float, float]) -> str:
    x0, y0, x1, y1 = (float(value or 0) for value in numbers)
    known = x0 < x1 and y0 < y1
    return _comment((x0, y0, x1, y1), scale) if known else "<!-- image -->"


def _comment(box: tuple[float, float, float, float], scale: tuple[float, float]) -> str:
    page = (PLACES[0] / scale[0], PLACES[1] / scale[1])
    return picture_place(on_page(box, scale, page))


def _block(part: _Part) -> Block:
    label = part.label.removesuffix("+")
    kind: Kind = "title" if label in _LEVELS else kind_of(label)
    text, level = part.text.strip(), 0
    if kind == "title":
        heading = _HEADING.fullmatch(text)
        level = len(heading[1]) if heading else _LEVELS.get(label, 2)
        text = heading[2].strip() if heading else text
    elif kind == "formula":
        text = re.sub(r"\A(\$\$|\\\[)(.*)(\$\$|\\\])\Z", r"\2", text, flags=re.DOTALL).strip()
    return Block(kind, text, on_page(part.box, (1.0, 1.0), PLACES), part.label, level=level)
