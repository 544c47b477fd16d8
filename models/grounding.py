"""Grounding output: boxes on the page that an answer names for its pieces.

DeepSeek-OCR writes ``<|ref|>label<|/ref|><|det|>[[x0, y0, x1, y1], ...]<|/det|>`` before the text of a place, with
coordinates from 0 to 999 on the page as sent. Asked to OCR or to locate, the model writes references only, whose labels
are the words read. Unlimited-OCR's own prompts give ``<|det|>label [x0, y0, x1, y1]<|/det|>``, and ``<PAGE>`` between
pages. The text is parsed in one pass, in linear time, and never evaluated; malformed references are left alone.
Families call this for their ``boxes``, the command line for its Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

FIGURE_LABEL = "image"  # the reference that marks a figure, which Markdown shows as a picture

_SCALE = 999  # coordinate of the right and the lower edge
_TAG = re.compile(r"(<\|/?(?:ref|det)\|>)")
_INNERMOST_LIST = re.compile(r"\[([^\[\]]*)\]")
_NUMBER = re.compile(r"\s*[+-]?[0-9]+(?:\.[0-9]*)?\s*")
_LABELLED = re.compile(r"\s*([^\s\[\]][^\[\]]*?)\s*(\[[^\[\]]*\])\s*")  # text between det tags that holds a label
LOCATION = re.compile(r"<\|LOC_([0-9]{1,4})\|>")  # see models.locations
# A comment with the picture's box on its page.
PICTURE = re.compile(r"<!-- image (?:\[([0-9]+), ([0-9]+), ([0-9]+), ([0-9]+)\] )?-->")
PAGE_BREAK = "<PAGE>"
_LEFT_OUT = "\ufdd1"  # stands for nothing in Unicode
_OPERATORS = {"\\coloneqq": ":=", "\\eqqcolon": "=:"}  # spelling of the published tool

Corners = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """One box on the page."""

    label: str  # the model's label: title, text, table, image ..., or the words that were asked for
    text: str  # the answer's text behind the reference, up to the next one; empty for a bare reference
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the page; x0 <= x1 <= width, y0 <= y1 <= height


@dataclass(frozen=True, slots=True)
class _Reference:
    label: str
    corners: tuple[Corners, ...]  # 0 to 999, upper left before lower right
    start: int  # span of the tags in the text
    end: int


def parse_boxes(text: str, width: int, height: int) -> list[Box]:
    """The boxes that an answer names, in order, on a page of ``width`` x ``height`` pixels.

    A reference with several boxes gives as many, with the same label and text. Coordinates off the page are moved to
    its edge, swapped corners are put in order; pixel = coordinate * side / 999, rounded down.
    """
    references = list(_references(text))
    ends = [*(reference.start for reference in references[1:]), *([len(text)] if references else [])]
    return [
        Box(
            reference.label.strip(),
            text[reference.end : end].split(PAGE_BREAK)[0].strip(),
            _pixels(corners, width, height),
        )
        for reference, end in zip(references, ends, strict=True)
        for corners in reference.corners
    ]


def to_markdown(text: str, figure_link: Callable[[int], str] | None = None) -> str:
    """The answer without its references, a figure's replaced by a link to its picture.

    A line of references alone is removed, too; else there would be three line ends between paragraphs. Of an answer
    that has only references, the labels are kept, one a line: they are the words read.

    figure_link : number of the figure -> path of its picture, such as ``images/0.jpg``. Figures are numbered from 0 in
    the order of boxes labelled ``FIGURE_LABEL`` in ``parse_boxes``. None: figures are left out.
    """
    pieces: list[str] = []
    done = figures = 0
    line_begins = True
    references = list(_references(text))
    labels_are_text = _is_nothing_but(references, text)
    for reference in references:
        before = text[done : reference.start]
        pieces.append(before)
        line_begins = before.endswith("\n") if before else line_begins
        done = reference.end
        if figure_link is not None and reference.label.strip() == FIGURE_LABEL:
            for _ in reference.corners:
                pieces.append(f"![]({figure_link(figures)})\n")
                figures += 1
            continue
        if labels_are_text and reference.label.strip() != FIGURE_LABEL:
            pieces.append(f"{reference.label.strip()}\n")
        if line_begins and text.startswith("\n", done):
            done += 1
    markdown = LOCATION.sub("", with_pictures("".join([*pieces, text[done:]]), {}))
    for command, plain in _OPERATORS.items():
        markdown = markdown.replace(command, plain)
    return markdown.strip()


def picture_place(box: tuple[int, int, int, int]) -> str:
    """A picture in Markdown without a link: a comment with its box on the page."""
    return f"<!-- image {list(box)} -->"


def has_places(text: str) -> bool:
    """Whether an answer names boxes between its words, and is not Markdown yet."""
    return "<|det|>" in text or LOCATION.search(text) is not None


def pictures_in(text: str) -> list[tuple[int, int, int, int]]:
    """Boxes of the pictures that a text has comments for, in order."""
    return [_place(found) for found in PICTURE.finditer(text) if found[1]]


def with_pictures(text: str, links: Mapping[tuple[int, int, int, int], str]) -> str:
    """A text with links to its pictures in place of the comments; pictures without a link are left out."""

    def shown(found: re.Match[str]) -> str:
        link = links.get(_place(found)) if found[1] else None
        return _LEFT_OUT if link is None else f"![]({link})"

    return re.sub(rf"{_LEFT_OUT}\n*", "", PICTURE.sub(shown, text))


def _place(found: re.Match[str]) -> tuple[int, int, int, int]:
    return int(found[1]), int(found[2]), int(found[3]), int(found[4])


def _is_nothing_but(references: Sequence[_Reference], text: str) -> bool:
    """Whether an answer consists of references only. (The last one may have been cut off.)"""
    done = 0
    for reference in references:
        if text[done : reference.start].strip():
            return False
        done = reference.end
    end = text[done:].strip()
    return not end or end.startswith("<|ref|>")


def _references(text: str) -> Iterator[_Reference]:
    """Every whole ref and det pair, and every det with a label of its own.

    Each piece between tags is scanned once, in linear time.
    """
    pieces = _TAG.split(text)  # plain, tag, plain, tag, ... plain
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    at = 1
    while at + 2 < len(pieces):
        tags = pieces[at : at + 7 : 2]
        if tags == ["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>"] and not pieces[at + 3].strip():
            yield _Reference(pieces[at + 1], _corners(pieces[at + 5]), starts[at], starts[at + 7])
            at += 8
        elif tags[:2] == ["<|det|>", "<|/det|>"] and (labelled := _LABELLED.fullmatch(pieces[at + 1])):
            if corners := _corners(labelled[2]):
                yield _Reference(labelled[1], corners, starts[at], starts[at + 3])
            at += 4
        else:
            at += 2


def _corners(places: str) -> tuple[Corners, ...]:
    """The lists of four numbers among ``places``; others are skipped."""
    found = []
    for inner in _INNERMOST_LIST.findall(places):
        values = inner.split(",")
        if len(values) == 4 and all(_NUMBER.fullmatch(value) for value in values):
            x0, y0, x1, y1 = (min(max(float(value), 0.0), float(_SCALE)) for value in values)
            found.append((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))
    return tuple(found)


def _pixels(corners: Corners, width: int, height: int) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = corners
    return int(x0 * width / _SCALE), int(y0 * height / _SCALE), int(x1 * width / _SCALE), int(y1 * height / _SCALE)
