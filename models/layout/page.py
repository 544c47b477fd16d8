"""Puts a page together from its parts: texts in reading order, joined where one part continues another."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from models.blocks import Block
from models.grounding import picture_place

from .page_rules import PageRules
from .parts import Part, corners
from .texts import block_of

SEPARATOR = "\n\n"  # between two parts, and between two pages

_ALIGNED = 0.01  # share of the page's width, within which two items of a list begin


@dataclass(frozen=True)
class PartAnswer:
    """The answer about one part. text : as the family presents it. error : why the part could not be read."""

    text: str = ""
    confidence: float | None = None
    error: str | None = None


class Page:
    """Takes the parts of a page in reading order and returns the page's text in pieces that never change later.

    ``blocks`` has every region so far, in reading order; in a part of several regions the first has the text.
    """

    def __init__(self, width: int, height: int, rules: PageRules) -> None:
        self.blocks: list[Block] = []
        self._size, self._rules = (width, height), rules
        self._open: list[int] = []  # blocks whose text later parts may still change
        self._has_text = False  # some text has been returned
        self._number: str | None = None  # number of the next formula
        self._ahead = 2 if rules.tidy_lists else 1 if rules.join_hyphens or rules.formula_numbers == "tag" else 0

    def add(self, part: Part, answer: PartAnswer) -> str:
        """Add the next part; returns the text that is certain now, perhaps empty."""
        first, *others = (corners(one, *self._size) for one in part.regions)
        block = block_of(part.label, answer.text, first, answer.confidence, self._rules)
        if block.kind == "formula" and self._number is not None:
            block = _tagged(block, self._number)
        self._number = None
        self._open.append(len(self.blocks))
        self.blocks.append(replace(block, score=part.regions[0].score))
        self._join()
        self.blocks += [
            replace(self.blocks[-1], text="", box=box, confidence=None, score=one.score)
            for one, box in zip(part.regions[1:], others, strict=True)
        ]
        return self._give(self._ahead)

    def finish(self) -> str:
        """The rest of the page's text."""
        return self._give(0)

    def _give(self, kept: int) -> str:
        pieces = []
        while len(self._open) > kept:
            text = to_markdown(self.blocks[self._open.pop(0)], self._rules)
            if text:
                pieces.append(SEPARATOR + text if self._has_text else text)
                self._has_text = True
        return "".join(pieces)

    def _join(self) -> None:
        """Join the newest part with open blocks that it continues."""
        newest, before = self.blocks[-1], self.blocks[self._open[-2]] if len(self._open) > 1 else None
        if newest.label == "formula_number" and self._rules.formula_numbers == "tag":
            if before is not None and before.kind == "formula" and "\\tag" not in before.text:
                self.blocks[self._open[-2]] = _tagged(before, newest.text)
            else:
                self._number = newest.text
        if before is None or newest.label != "text" or before.label != "text":
            return
        if self._rules.join_hyphens and (joined := _rejoined(before.text, newest.text)) is not None:
            self.blocks[self._open[-2]] = replace(before, text=joined)
            self.blocks[-1] = replace(newest, text="")
        elif self._rules.tidy_lists and len(self._open) > 2:
            first = self.blocks[self._open[-3]]
            if _between_items(first, before, newest, self._size[0]):
                self.blocks[self._open[-2]] = replace(before, text=f"- {before.text}", kind="list")


def to_markdown(block: Block, rules: PageRules, picture: Callable[[Block], str] | None = None) -> str:
    """A block as Markdown of its page; empty for a block that is not part of the text.

    picture : writes a picture; None: as a comment with its box, see ``models.grounding``.
    """
    if block.label in rules.hidden or block.label in rules.dropped or block.label == "formula_number":
        return ""
    if rules.shows_picture(block.label):
        shown = (picture or place_of)(block)
        return f"{shown}{SEPARATOR}{block.text}" if block.text else shown
    if not block.text:
        return ""
    if block.kind == "title":
        return f"{'#' * block.level} {block.text}"
    return rules.formula_fence.replace("{}", block.text) if block.kind == "formula" else block.text


def place_of(block: Block) -> str:
    """A picture in Markdown without a link: a comment with its box on the page."""
    assert block.box is not None
    return picture_place(block.box)


def _tagged(block: Block, number: str) -> Block:
    inner = number.strip().strip("()（）").strip()
    return replace(block, text=f"{block.text} \\tag{{{inner}}}") if inner else block


def _rejoined(before: str, after: str) -> str | None:
    """Two texts as one where a word is split between them; None where none is."""
    if not before.endswith("-") or not after[:1].islower():
        return None
    head, tail = re.search(r"([^\W\d_]*)-\Z", before), re.match(r"[^\W\d_]+", after)
    word = (head[1] if head else "") + (tail[0] if tail else "")
    return before[:-1] + after if head and head[1] and tail and 3 <= len(word) <= 31 else None


def _between_items(first: Block, middle: Block, last: Block, width: int) -> bool:
    """Whether a text between two items of a list is an item, too: all three have the same left edge."""
    if not (first.text.startswith("- ") and last.text.startswith("- ")) or middle.text.startswith("- "):
        return False
    lefts = [block.box[0] for block in (first, middle, last) if block.box is not None]
    return len(lefts) == 3 and bool(middle.text) and max(lefts) - min(lefts) <= _ALIGNED * width
