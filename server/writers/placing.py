"""Places words on a page: lines and words with boxes, for PDF's text layer, hOCR and ALTO.

Models locate blocks, not words. A block's text is typeset into its box: as large as possible, broken at blanks, with
lines as wide as the box except a paragraph's last. Words are then off by little more than their letters' widths differ
from the average. Blocks without a box share the page, or the space between their neighbours.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from models.blocks import Block
from models.turned import back, turned_box

from .plain import plain_cell, plain_lines
from .result import PageResult
from .tables import PlacedCell, cells_of

Rect = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the page, from its upper left corner

LEADING = 1.2  # height of a line for each unit of the font's size
_BLANK = 0.28  # width of a blank in units of the font's size
_NARROW = frozenset("iljtfrI.,;:'|!()[]/\\\"-")
_WIDEST = 1.6  # most horizontal stretch of letters
_MARGIN, _LINES, _LINE = 0.05, 45, 45.0  # of pages without boxes: margin as a share of a side, lines, units of a line


@dataclass(frozen=True)
class Word:
    text: str
    box: Rect


@dataclass(frozen=True)
class Line:
    words: tuple[Word, ...]  # in reading order
    box: Rect
    right_to_left: bool = False


@dataclass(frozen=True)
class Area:
    """One block with its lines; a table has its cells' lines, row by row."""

    block: Block
    box: Rect
    lines: tuple[Line, ...]


def areas(result: PageResult) -> list[Area]:
    """The blocks of a page in reading order, each with a box, known or guessed, and with placed words."""
    boxes = _boxes(result.blocks, result.width, result.height)
    return [Area(block, box, tuple(_lines(block, box))) for block, box in zip(result.blocks, boxes, strict=True)]


def areas_as_they_came(result: PageResult) -> list[Area]:
    """``areas`` on the unturned page, where lines of a turned page do not run across."""
    size, undo = (float(result.width), float(result.height)), back(result.rotated)

    def came(line: Line) -> Line:
        words = tuple(replace(word, box=turned_box(word.box, size, undo)) for word in line.words)
        return replace(line, words=words, box=turned_box(line.box, size, undo))

    return [
        replace(area, box=turned_box(area.box, size, undo), lines=tuple(map(came, area.lines)))
        for area in areas(result)
    ]


def _boxes(blocks: Sequence[Block], width: int, height: int) -> list[Rect]:
    """A box for each block: blocks between two known boxes share the height between these."""
    boxes: list[Rect] = []
    edge, left, right = height * _MARGIN, width * _MARGIN, width * (1 - _MARGIN)
    at = 0
    while at < len(blocks):
        known = blocks[at].box
        if known is not None:
            boxes.append(_within(known, width, height))
            at += 1
            continue
        end = next((i for i in range(at, len(blocks)) if blocks[i].box is not None), len(blocks))
        top, bottom = boxes[-1][3] if boxes else edge, height - edge
        if end < len(blocks) and (below := blocks[end].box) is not None:
            bottom = _within(below, width, height)[1]
        if bottom - top < height / 50 * (end - at):  # too little height, or the boxes are side by side
            top, bottom = edge, height - edge
        lines = [_line_count(_paragraphs(block), _LINE) for block in blocks[at:end]]
        pitch = min((bottom - top) / sum(lines), height / _LINES)
        for count in lines:
            boxes.append((left, top, right, top + count * pitch))
            top += count * pitch
        at = end
    return boxes


def _within(box: Sequence[float], width: int, height: int) -> Rect:
    """A box of at least a pixel, on the page."""
    x0, y0 = min(max(box[0], 0), width - 1), min(max(box[1], 0), height - 1)
    return x0, y0, max(min(box[2], width), x0 + 1), max(min(box[3], height), y0 + 1)


def _lines(block: Block, box: Rect) -> Iterator[Line]:
    if block.kind == "table" and (cells := cells_of(block.text)):
        for cell, place in _cell_boxes(cells, box):
            yield from _set(_paragraphs_of([cell]), place)
    else:
        yield from _set(_paragraphs(block), box)


def _cell_boxes(cells: Sequence[PlacedCell[str]], box: Rect) -> Iterator[tuple[str, Rect]]:
    """Boxes of cells: columns by their widest words, rows by their longest cells."""
    texts = {cell: plain_cell(cell.what) for cell in cells}
    across = [1.0] * max(cell.column + cell.width for cell in cells)
    for cell, text in texts.items():
        if cell.width == 1:
            across[cell.column] = max(across[cell.column], min(_units(text), 30.0))
    down = [1.0] * max(cell.row + cell.height for cell in cells)
    for cell, text in texts.items():
        if cell.height == 1:
            room = sum(across[cell.column : cell.column + cell.width])
            down[cell.row] = max(down[cell.row], math.ceil(_units(text) / room))
    x0, y0, x1, y1 = box
    columns = [x0 + (x1 - x0) * sum(across[:n]) / sum(across) for n in range(len(across) + 1)]
    rows = [y0 + (y1 - y0) * sum(down[:n]) / sum(down) for n in range(len(down) + 1)]
    for cell, text in texts.items():
        right, bottom = columns[cell.column + cell.width], rows[cell.row + cell.height]
        gap = (right - columns[cell.column]) * 0.05
        yield text, (columns[cell.column] + gap, rows[cell.row], right - gap, bottom)


@dataclass(frozen=True)
class _Piece:
    """An unbreakable piece: a word, or a character of a script without blanks."""

    text: str
    units: float
    blank_before: bool


_Paragraph = tuple[_Piece, ...]


def _paragraphs(block: Block) -> list[_Paragraph]:
    if block.kind == "table" and (cells := cells_of(block.text)):
        return _paragraphs_of([plain_cell(cell.what) for cell in cells])
    return _paragraphs_of(plain_lines(block))


def _paragraphs_of(lines: Sequence[str]) -> list[_Paragraph]:
    return [pieces for line in lines if (pieces := tuple(_pieces(line)))]


def _pieces(line: str) -> Iterator[_Piece]:
    for number, word in enumerate(line.split()):
        start = 0
        for end in range(1, len(word) + 1):
            if end == len(word) or (_width(word[end - 1]) == 1.0 and _width(word[end]) > 0):
                yield _Piece(word[start:end], _units(word[start:end]), number > 0 and start == 0)
                start = end


def _length(pieces: Sequence[_Piece]) -> float:
    return sum(piece.units + _BLANK * piece.blank_before for piece in pieces)


def _line_count(paragraphs: Sequence[_Paragraph], room: float) -> int:
    """About the number of lines of paragraphs that are broken after ``room`` units."""
    return max(1, sum(max(1, math.ceil(_length(paragraph) / room)) for paragraph in paragraphs))


def _set(paragraphs: Sequence[_Paragraph], box: Rect) -> Iterator[Line]:
    """Paragraphs as lines that fill a box."""
    if not paragraphs:
        return
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    room = _room(paragraphs, width, height)
    broken = [(line, last) for paragraph in paragraphs for line, last in _broken(paragraph, room)]
    # Lines that end early keep their share of the longest line, which reaches the margin.
    longest = max(_length(line) for line, _ in broken)
    pitch = height / len(broken)
    for number, (line, last) in enumerate(broken):
        share = min(1.0, _length(line) / longest) if last and len(broken) > 1 else 1.0
        reach = min(width * share, _length(line) * pitch / LEADING * _WIDEST)
        yield _placed(line, (x0, y0 + number * pitch, x0 + reach, y0 + (number + 1) * pitch), x1)


def _room(paragraphs: Sequence[_Paragraph], width: float, height: float) -> float:
    """Units of a line: as few as possible, for the largest letters that fit the box."""
    low, high = 0.5, max(_length(paragraph) for paragraph in paragraphs) + 1
    for _ in range(30):
        middle = (low + high) / 2
        if _line_count(paragraphs, middle) * LEADING * width / middle <= height:
            high = middle
        else:
            low = middle
    return high


def _broken(paragraph: _Paragraph, room: float) -> Iterator[tuple[_Paragraph, bool]]:
    """Lines of a paragraph, and whether each is its last."""
    line: list[_Piece] = []
    length = 0.0
    for piece in paragraph:
        more = piece.units + _BLANK * piece.blank_before
        if line and length + more > room * 1.0001:
            yield tuple(line), False
            line, length = [], 0.0
        line.append(piece)
        length += more
    yield tuple(line), True


def _placed(line: _Paragraph, box: Rect, margin: float) -> Line:
    """The words of a line from the left, or from the right ``margin`` where the script runs that way."""
    x0, y0, x1, y1 = box
    words: list[list[_Piece]] = []
    for piece in line:
        if words and not piece.blank_before:
            words[-1].append(piece)
        else:
            words.append([piece])
    backwards = runs_backwards("".join(piece.text for piece in line))
    units = [sum(piece.units for piece in word) or 0.1 for word in words]
    scale = (x1 - x0) / (sum(units) + _BLANK * (len(words) - 1))
    order = _seen_order(["".join(piece.text for piece in word) for word in words]) if backwards else range(len(words))
    if backwards:
        x0, x1 = margin - (x1 - x0), margin
    at = x0
    boxes: dict[int, Rect] = {}
    for number in order:
        boxes[number] = (at, y0, at + units[number] * scale, y1)
        at += (units[number] + _BLANK) * scale
    placed = (Word("".join(piece.text for piece in word), boxes[n]) for n, word in enumerate(words))
    return Line(tuple(placed), (x0, y0, x1, y1), backwards)


def _seen_order(words: Sequence[str]) -> list[int]:
    """Words of a right-to-left line in visual order from the left; left-to-right runs in it keep their order."""
    order: list[int] = []
    run: list[int] = []
    for number, word in enumerate(words):
        if runs_backwards(word) or not any(letter.isalnum() for letter in word):
            order += [*reversed(run), number]
            run = []
        else:
            run.append(number)
    return list(reversed([*order, *reversed(run)]))


def runs_backwards(text: str) -> bool:
    """Whether the first letter with a direction belongs to a script that is written from the right."""
    for letter in text:
        direction = unicodedata.bidirectional(letter)
        if direction in ("L", "R", "AL"):
            return direction != "L"
    return False


def _units(text: str) -> float:
    return sum(map(_width, text))


@lru_cache(4096)
def _width(letter: str) -> float:
    """Width of a letter in units of the font's size, in an average font."""
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    if letter in _NARROW:
        return 0.3
    if letter in "mwMW@%":
        return 0.85
    return 0.65 if letter.isupper() else 0.52
