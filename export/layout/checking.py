"""The last check of a detector's graphs: they load, values are finite, and float16 agrees with float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from models.layout.boxes import regions
from models.layout.decode import decode
from models.layout.manifest import DetectorImageRules
from models.layout.regions import Region
from models.layout.resize import pixel_values
from models.layout.rules import DetectionRules
from models.manifest import Checked, Provider

from ..check import cuda_session, cuda_works, mapped_session
from ..export_errors import ExportError
from ..graphs import graph_file

_SAME_PLACE = 0.9  # IoU from which on two boxes are the same
_LEAST_AGREEMENT = 0.9  # least agreement of float16 with float32, as a share of regions of the drawn page


@dataclass(frozen=True)
class CheckedDetector:
    """Results of the check."""

    checked: Mapping[Provider, Checked]
    half_is_right: bool
    report: Mapping[str, Any]


def check_detector(folder: Path, image: DetectorImageRules, rules: DetectionRules) -> CheckedDetector:
    """Run both graphs on a drawn page; CUDA's on CUDA where that is, else on the CPU, whose float16 rounds alike.

    Raises
    ------
    ExportError
        when a graph does not load or gives a value that is not finite.
    """
    page = drawn_page()
    pixels = pixel_values(page, image.height, image.width)
    wide, half = folder / graph_file("layout", "cpu"), folder / graph_file("layout", "cuda")
    on_cuda = cuda_works(half)
    expected = _run(mapped_session(wide), pixels, wide.name)
    given = _run(cuda_session(half) if on_cuda else mapped_session(half), pixels, half.name)
    found, again = (regions(decode(one, *page.size), rules, *page.size) for one in (expected, given))
    agreement = _agreement(found, again)
    return CheckedDetector(
        {"cpu": "run", "cuda": "run" if on_cuda else "structure only, not run"},
        agreement >= _LEAST_AGREEMENT,
        {
            "float16_on_a_drawn_page": {
                "regions": len(found),
                "agreement": agreement,
                "on": "cuda" if on_cuda else "cpu",
            }
        },
    )


def drawn_page() -> Image.Image:
    """A title, two columns of lines and a picture."""
    page = Image.new("RGB", (1240, 1754), "white")
    draw = ImageDraw.Draw(page)
    draw.text((320, 90), "A page of the exporter", "black", font=ImageFont.load_default(56))
    body = ImageFont.load_default(22)
    for column in (110, 660):
        for line in range(34):
            draw.text((column, 230 + 32 * line), f"Line {line + 1} of a column that says nothing", "black", font=body)
    draw.rectangle((110, 1380, 1130, 1640), "steelblue", "black", 3)
    draw.ellipse((500, 1420, 740, 1600), "gold")
    return page


def _run(session: Any, pixels: np.ndarray, name: str) -> dict[str, np.ndarray]:
    names = ["logits", "pred_boxes", "order_logits"]
    values = dict(zip(names, session.run(names, {"pixel_values": pixels}), strict=True))
    if not all(np.isfinite(value).all() for value in values.values()):
        raise ExportError(f"{name} gives values that are not finite; the checkpoint is damaged")
    return values


def _agreement(expected: list[Region], found: list[Region]) -> float:
    """Share of the regions, of both lists, that the other list has too; 1 of none."""
    if not expected and not found:
        return 1.0
    matches = sum(any(_same(one, other) for other in found) for one in expected)
    matches += sum(any(_same(one, other) for other in expected) for one in found)
    return matches / (len(expected) + len(found))


def _same(one: Region, other: Region) -> bool:
    (left, top, right, bottom), (left2, top2, right2, bottom2) = one.box, other.box
    shared = max(0.0, min(right, right2) - max(left, left2)) * max(0.0, min(bottom, bottom2) - max(top, top2))
    both = (right - left) * (bottom - top) + (right2 - left2) * (bottom2 - top2) - shared
    return one.label == other.label and shared >= _SAME_PLACE * both
