"""PaddleOCR-VL's boxes when it spots text: eight ``<|LOC_n|>`` behind each line, the corners of a quad.

n is a thousandth of the page's width (first of each pair) or height. Families call this for their ``boxes``;
``models.grounding`` takes them out of Markdown.
"""

from __future__ import annotations

import re

from .grounding import LOCATION, Box

_SCALE = 1000
_QUAD = re.compile(f"(?:{LOCATION.pattern}){{8}}")
LABEL = "text"


def parse_locations(text: str, width: int, height: int) -> list[Box]:
    """The lines that an answer locates on a page of ``width`` x ``height`` pixels, each with the box around its quad.

    Corners off the page are moved to its edge. Fewer or more than eight numbers are no quad, and are skipped.
    """
    boxes = []
    done = 0
    for quad in _QUAD.finditer(text):
        line = text[done : quad.start()].strip()
        done = quad.end()
        values = [min(int(value), _SCALE) for value in LOCATION.findall(quad[0])]
        columns, rows = values[0::2], values[1::2]
        corners = (
            min(columns) * width // _SCALE, min(rows) * height // _SCALE,
            max(columns) * width // _SCALE, max(rows) * height // _SCALE,
        )  # fmt: skip
        boxes.append(Box(LABEL, LOCATION.sub("", line), corners))
    return boxes
