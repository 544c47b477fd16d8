"""From the regions of a page to parts to read, one request each, and to the pictures of these parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from .boxes import without_overlaps
from .page_rules import PageRules
from .regions import Region

Box = tuple[float, float, float, float]
Corners = tuple[int, int, int, int]
Side = Literal["center", "left", "right"]

_NEAR = 0.3  # share of the wider text's width: a gap between two columns
_BELOW = 0.5  # share of the taller text's height: a gap between two paragraphs
_ALIGNED = 5  # pixels between two edges that count as aligned
_TALLEST = 3  # times as high as wide: too tall a stack to be read as one
_CONTRAST = 48  # grey levels by which ink differs from its background
_SPECKS = 1e-5  # share of a page's pixels, up to which dark ones are no ink
_INK = 200  # grey levels, of 0 to 255, below which there is ink


@dataclass(frozen=True)
class Part:
    """A unit of reading: a region, or several regions with one text.

    element : see ``page_rules.ELEMENTS``; None: the part is not read. sides : how each region but the first is aligned
    below the ones before it.
    """

    regions: tuple[Region, ...]
    element: str | None
    sides: tuple[Side, ...] = ()

    @property
    def label(self) -> str:
        """The label of all its regions."""
        return self.regions[0].label


def parts_of(regions: Sequence[Region], rules: PageRules) -> list[Part]:
    """The parts of a page in reading order. Every region that is not dropped by a rule is in exactly one."""
    kept = [one for one in sorted(regions, key=lambda one: one.order) if one.label not in rules.dropped]
    if rules.drop_overlapping:
        kept = without_overlaps(kept)
    parts = [Part((one,), rules.element(one.label)) for one in kept]
    return _joined(parts, rules) if rules.join_text else parts


def picture_of(part: Part, page: Image.Image, rules: PageRules) -> Image.Image:
    """The picture of a part for the model."""
    picture = _cut(page, part.regions[0], rules)
    for region, side in zip(part.regions[1:], part.sides, strict=True):
        picture = _stacked(picture, _cut(page, region, rules), side)
    return picture


def corners(region: Region, width: int, height: int, margin: int = 0) -> Corners:
    """The pixels of a region on a page of ``width`` x ``height``: at least one, none outside."""
    x0, y0, x1, y1 = (round(value) for value in region.box)
    left, top = min(max(x0 - margin, 0), width - 1), min(max(y0 - margin, 0), height - 1)
    return left, top, max(min(x1 + margin, width), left + 1), max(min(y1 + margin, height), top + 1)


def _cut(page: Image.Image, region: Region, rules: PageRules) -> Image.Image:
    picture = page.crop(corners(region, *page.size, rules.margin))
    if rules.ink_only and region.label in ("display_formula", "inline_formula"):
        return _ink(picture)
    return picture


def _ink(picture: Image.Image) -> Image.Image:
    """The picture without its white margin, unless next to nothing is left."""
    grey = ImageOps.autocontrast(picture.convert("L"))
    box = grey.point(lambda level: 255 if level < _INK else 0).getbbox()
    return picture.crop(box) if box and box[2] - box[0] > 2 and box[3] - box[1] > 2 else picture


def _stacked(upper: Image.Image, lower: Image.Image, side: Side) -> Image.Image:
    """Pictures one below the other, on white."""
    width = max(upper.width, lower.width)
    stack = Image.new("RGB", (width, upper.height + lower.height), "white")
    for picture, top in ((upper, 0), (lower, upper.height)):
        room = width - picture.width
        stack.paste(picture, ({"left": 0, "center": room // 2, "right": room}[side], top))
    return stack


def _joined(parts: Sequence[Part], rules: PageRules) -> list[Part]:
    """Join texts that continue each other into one part; a picture between them comes after it."""
    apart = (*rules.pictures, "table")
    obstacles = [one.regions[0] for one in parts if one.label in apart]
    groups: list[Part] = []  # parts that are no obstacles, in order
    for part in parts:
        if part.label in apart:
            continue
        side = _follows(groups[-1], part, obstacles) if groups else None
        if side is None:
            groups.append(part)
        else:
            before = groups[-1]
            groups[-1] = replace(before, regions=(*before.regions, *part.regions), sides=(*before.sides, side))
    whole = {id(group.regions[0]): group for group in groups if len(group.regions) > 1 and not _is_tall(group)}
    taken = {id(region) for group in whole.values() for region in group.regions[1:]}
    return [whole.get(id(one.regions[0]), one) for one in parts if id(one.regions[0]) not in taken]


def _follows(before: Part, part: Part, obstacles: Sequence[Region]) -> Side | None:
    """How a text is aligned below the text that it continues; None for two texts."""
    if before.label != "text" or part.label != "text":
        return None
    upper, lower = before.regions[-1].box, part.regions[0].box
    shared = _beside(upper, lower)
    if shared <= 0:
        wider = max(upper[2] - upper[0], lower[2] - lower[0])
        next_column = lower[0] > upper[2] and lower[1] < upper[3] and lower[0] - upper[2] < _NEAR * wider
        return "center" if next_column else None
    taller = max(upper[3] - upper[1], lower[3] - lower[1])
    left, right = (abs(upper[edge] - lower[edge]) < _ALIGNED for edge in (0, 2))
    if lower[3] < upper[1] or abs(lower[1] - upper[3]) >= _BELOW * taller or left == right:
        return None
    union = (min(upper[0], lower[0]), min(upper[1], lower[1]), max(upper[2], lower[2]), max(upper[3], lower[3]))
    if not any(_beside(union, one.box) > 0 and _beside(_turned(union), _turned(one.box)) > 0 for one in obstacles):
        return None
    return "left" if left else "right"


def _beside(first: Box, second: Box) -> float:
    """How many pixels of width two boxes share; negative: the gap between them."""
    return min(first[2], second[2]) - max(first[0], second[0])


def _turned(box: Box) -> Box:
    return box[1], box[0], box[3], box[2]


def _is_tall(part: Part) -> bool:
    boxes = [one.box for one in part.regions]
    return sum(box[3] - box[1] for box in boxes) >= _TALLEST * max(box[2] - box[0] for box in boxes)


def whole_page(width: int, height: int) -> Part:
    """A page without found parts, as one text."""
    return Part((Region("text", (0, 0, width, height), 0.0, 0),), "text")


def is_blank(page: Image.Image) -> bool:
    """Whether a page is blank: hardly a pixel differs from the background."""
    levels = np.asarray(page.convert("L")).ravel()
    histogram = np.bincount(levels, minlength=256)
    ground = int(np.searchsorted(np.cumsum(histogram), levels.size / 2))  # the median
    ink = histogram[np.abs(np.arange(256) - ground) > _CONTRAST].sum()
    return bool(ink < _SPECKS * levels.size)
