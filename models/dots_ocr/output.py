"""dots.ocr's answers: streamed as Markdown, and as blocks.

Asked for the layout, the model writes JSON (see ``cells``): the Markdown has the JSON's cells in their order, as the
authors' own script joins them. Any other answer is given out unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pydantic import Field

from models.blocks import Block, kind_of, on_page
from models.family import OutputFilter, Verbatim
from models.family_settings import FamilySettings
from models.grounding import picture_place

from .cells import Cell, Cells
from .prompts import TASKS, words

# As the authors serve the model: no penalty and no n-gram rule, since both write wrong cells. The guard ends loops.
DEFAULTS: Mapping[str, Any] = MappingProxyType({"no_repeat_ngram_size": 0})

SALVAGED = "the model's layout was broken or cut off; its {} whole parts are above"
_PAGE_ENDS = ("header", "footer")
_FIRST_BOX = 400  # characters within which a layout names its first box, words before the layout included
_JSON = re.compile(r'\s*(?:```\w*\s*)?[\[{]\s*(?:[\[{"]|\Z)')
_MAY_BE_JSON = re.compile(r"\s*(?:`{0,2}|```\w*\s*)\Z")
_EMPTY = re.compile(r"\s*(?:```\w*)?\s*(?:\[\s*\]|\{\s*\})\s*(?:```)?\s*")
_PREAMBLE = re.compile(
    r"\\(?:documentclass|usepackage)(?:\[[^\]]*\])?\{[^}]+\}|\\(?:begin|end)\{document\}", re.IGNORECASE
)
_HEADING = re.compile(r"\s*(#{1,6})\s+(.*)", re.DOTALL)


class OutputSettings(FamilySettings):
    """Settings of answers."""

    page_headers: bool = Field(
        True, description="the text has the page's headers and footers, where a model tells them"
    )


@dataclass
class LayoutText:
    """Writes a layout as Markdown, a cell as soon as it is whole; other text passes through.

    asked : the prompt asks for a layout, so words before the layout are no answer of their own.
    scale : see ``models.family.Family.output``.
    """

    asked: bool = False
    page_headers: bool = True
    scale: tuple[float, float] = (1.0, 1.0)
    _cells: Cells = field(default_factory=Cells)
    _held: str = ""  # the answer so far, until it proves to be no layout or has a cell
    _is_layout: bool | None = None
    _written: int = 0

    def push(self, text: str) -> str:
        if self._is_layout is None:
            self._held += text
            self._is_layout = self._decide()
            if self._is_layout is None:
                return ""
            text = self._held
        elif self._is_layout and not self._cells.found:
            self._held += text
        if not self._is_layout:
            self._held = ""
            return text
        written = self._markdown(self._cells.push(text))
        if self._cells.found:
            self._held = ""
        return written

    def finish(self) -> str:
        if not self._is_layout:
            return "" if self.asked and _EMPTY.fullmatch(self._held) else self._held
        written = self._markdown(self._cells.finish())
        if not self._cells.found:
            return self._held
        if self._cells.salvaged:
            note = f"<!-- {SALVAGED.format(self._written)} -->"
            written += f"\n\n{note}" if self._written else note
        return written

    def _decide(self) -> bool | None:
        """Whether the answer is a layout, judged by its beginning; None: unknown so far."""
        if not self.asked and not _JSON.match(self._held) and not _MAY_BE_JSON.match(self._held):
            return False
        if '"bbox"' in self._held[:_FIRST_BOX]:
            return True
        return False if len(self._held) >= _FIRST_BOX else None

    def _markdown(self, cells: Sequence[Cell]) -> str:
        pieces = []
        for cell in cells:
            kind = kind_of(cell.category)
            text = self._text(cell)
            if not text or (kind in _PAGE_ENDS and not self.page_headers):
                continue
            pieces.append(f"\n\n{text}" if self._written else text)
            self._written += 1
        return "".join(pieces)

    def _text(self, cell: Cell) -> str:
        kind = kind_of(cell.category)
        if kind == "figure" and cell.box is not None:
            return picture_place(on_page(cell.box, self.scale))
        return displayed(cell.text) if kind == "formula" else cell.text.strip()


def output_filter(
    prompt: str, settings: Mapping[str, Any] = MappingProxyType({}), scale: tuple[float, float] = (1.0, 1.0)
) -> OutputFilter:
    """See ``models.family.Family.output``. Asked for places alone, the answer stays JSON."""
    text = words(prompt)
    if text == words(TASKS["layout-only"]):
        return Verbatim()
    asked = text in (words(TASKS["layout"]), words(TASKS["web"]))
    return LayoutText(asked, OutputSettings.of(settings).page_headers, scale)


def layout_blocks(text: str, width: int, height: int) -> tuple[Block, ...]:
    """The blocks of the model's own answer; none where it is no layout.

    width, height : of the picture that the model saw.
    """
    reader = Cells()
    cells = [*reader.push(text), *reader.finish()]
    return tuple(_block(cell, (width, height)) for cell in cells)


def _block(cell: Cell, size: tuple[int, int]) -> Block:
    kind, text, level = kind_of(cell.category), cell.text.strip(), 0
    if kind == "title":
        heading = _HEADING.fullmatch(text)
        level = len(heading[1]) if heading else 1 if cell.category == "Title" else 2
        text = heading[2].strip() if heading else text
    elif kind == "formula":
        text = undelimited(text)
    elif kind == "figure":
        text = ""
    return Block(
        kind, text, None if cell.box is None else on_page(cell.box, (1.0, 1.0), size), cell.category, level=level
    )


def displayed(text: str) -> str:
    """A formula as Markdown on lines of its own; a formula with dollars inside is left unchanged."""
    inner = undelimited(text)
    return inner if "$" in inner or not inner or re.search(r"\\\[.*\\\]", inner, re.DOTALL) else f"$$\n{inner}\n$$"


def undelimited(text: str) -> str:
    """LaTeX alone: without dollars, brackets, backticks or a document around it."""
    text = _PREAMBLE.sub("", text).strip()
    if len(text) > 2 and text[0] == text[-1] == "`" and not text.startswith("```"):
        text = text[1:-1].strip()
    for begin, end in (("$$", "$$"), ("\\[", "\\]")):
        inner = text[len(begin) : -len(end)].strip()
        if len(text) >= len(begin + end) and text.startswith(begin) and text.endswith(end) and begin not in inner:
            return inner if "$" not in inner else text
    return text
