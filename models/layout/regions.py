"""One part of a page as a layout detector found it. Runtime makes them, the task ``document`` reads them one by one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """A rectangle of a page and what stands in it.

    label : one of ``models.layout.labels.LABELS``.
    box : left, top, right and bottom in pixels of the page as it was given, inside of it, right and bottom exclusive.
    score : how sure the detector is, 0..1.
    order : place in the reading order: 0, 1, 2, ... without a gap over the regions of one page.
    polygon : corners in pixels of the page, where the outline is known to be another than the box.
    """

    label: str
    box: tuple[float, float, float, float]
    score: float
    order: int
    polygon: tuple[tuple[float, float], ...] | None = None
