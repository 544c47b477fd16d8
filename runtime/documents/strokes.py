"""The strokes of annotations that a PDF describes without drawing them: lines with their ends.

The ends have the shapes and sizes that poppler gives them. Pure geometry, in points of the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Point = tuple[float, float]

_END_TIMES = 6  # size of a line's end, in widths of the line
_CORNERS = 24  # corners of a circle
_FLANK = math.tan(math.pi / 6)  # half the width of an arrow, for its length

# Ends of lines: whether the shape is closed, and its corners: the first number along the line, from its tip outwards,
# the second across, both in sizes of the end.
_ENDS: dict[str, tuple[bool, Sequence[Point]]] = {
    "Square": (True, [(0, 0.5), (0, -0.5), (-1, -0.5), (-1, 0.5)]),
    "Circle": (True, [(0.5 * math.cos(turn) - 0.5, 0.5 * math.sin(turn))
                      for turn in (2 * math.pi * corner / _CORNERS for corner in range(_CORNERS))]),
    "Diamond": (True, [(0, 0), (-0.5, -0.5), (-1, 0), (-0.5, 0.5)]),
    "OpenArrow": (False, [(-1, _FLANK), (0, 0), (-1, -_FLANK)]),
    "ClosedArrow": (True, [(-1, _FLANK), (0, 0), (-1, -_FLANK)]),
    "Butt": (False, [(0, 0.5), (0, -0.5)]),
    "ROpenArrow": (False, [(1, _FLANK), (0, 0), (1, -_FLANK)]),
    "RClosedArrow": (True, [(1, _FLANK), (0, 0), (1, -_FLANK)]),
    "Slash": (False, [(-0.25, -0.5), (0.25, 0.5)]),
}  # fmt: skip
_SHORTENING = ("Square", "Circle", "Diamond", "ClosedArrow")  # ends in whose inside the line does not go on


@dataclass(frozen=True)
class Stroke:
    """A path; a closed one is filled, too, where the annotation has an interior colour."""

    points: Sequence[Point]
    closed: bool = False


@dataclass(frozen=True)
class Style:
    """How an annotation's strokes look, by its dictionary. Lengths are in points."""

    width: float = 1.0
    dash: tuple[float, ...] = ()  # lengths of dashes and gaps
    ends: tuple[str, str] = ("None", "None")  # kinds of a line's ends
    leader: float = 0.0  # distance of a line from the points that the line measures, to the left
    beyond: float = 0.0  # length of the leader lines beyond the line
    under: bool = False  # a border that is one line under the rectangle

    @classmethod
    def of(cls, annotation: dict[str, Any], width: float) -> Style:
        """The style of an annotation, given in plain Python (see ``structure``). width : where it says nothing."""
        border = annotation.get("/BS")
        border = border if isinstance(border, dict) else {}
        older = annotation.get("/Border")
        older = older if isinstance(older, list) else []
        dash: Any = border.get("/D", [3]) if border.get("/S") == "/D" else older[3] if len(older) > 3 else []
        ends = annotation.get("/LE")
        ends = ends if isinstance(ends, list) else [ends, None]
        first, last = (str(end).removeprefix("/") for end in [*ends, None, None][:2])
        return cls(
            width=max(0.0, _number(border.get("/W"), 1.0 if border else width)), dash=_dashes(dash), ends=(first, last),
            leader=_number(annotation.get("/LL"), 0.0), beyond=_number(annotation.get("/LLE"), 0.0),
            under=border.get("/S") == "/U",
        )  # fmt: skip


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else default


def _dashes(value: Any) -> tuple[float, ...]:
    lengths = tuple(_number(one, -1.0) for one in value[:10]) if isinstance(value, list) else ()
    return lengths if min(lengths, default=-1.0) >= 0 and sum(lengths) > 0 else ()


def measured(start: Point, end: Point, style: Style) -> list[Stroke]:
    """A line annotation: the line itself, its ends, and its leader lines."""
    length = math.dist(start, end)
    if not style.leader or not length:
        return with_ends([start, end], style)
    left = ((start[1] - end[1]) / length, (end[0] - start[0]) / length)

    def moved(point: Point, by: float) -> Point:
        return point[0] + left[0] * by, point[1] + left[1] * by

    tip = style.leader + math.copysign(style.beyond, style.leader)
    line = with_ends([moved(start, style.leader), moved(end, style.leader)], style)
    return [*line, *(Stroke([point, moved(point, tip)]) for point in (start, end))]


def with_ends(points: Sequence[Point], style: Style) -> list[Stroke]:
    """An open path with the shapes at its ends."""
    if len(points) < 2:
        return []
    inner, ends = list(points), []
    for place, beside, kind in ((0, 1, style.ends[0]), (-1, -2, style.ends[1])):
        tip, before = points[place], points[beside]
        length = math.dist(tip, before)
        if kind not in _ENDS or not length:
            continue
        size = min(_END_TIMES * style.width, length / 2)
        along = ((tip[0] - before[0]) / length, (tip[1] - before[1]) / length)
        closed, shape = _ENDS[kind]
        ends.append(Stroke([_placed(tip, along, size, corner) for corner in shape], closed))
        if kind in _SHORTENING:
            inner[place] = _placed(tip, along, size, (-1, 0))
    return [Stroke(inner), *ends]


def _placed(tip: Point, along: Point, size: float, corner: Point) -> Point:
    """A corner of an end's shape, on the page. along : the direction of the line, of length 1."""
    out, across = corner[0] * size, corner[1] * size
    return tip[0] + along[0] * out - along[1] * across, tip[1] + along[1] * out + along[0] * across
