"""A layout detector's regions of a page. The runtime finds them, and the task ``document`` reads them one by one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """A rectangle of a page, with the label of its content.

    label : one of ``models.layout.labels.LABELS``.
    box : left, top, right and bottom in pixels of the given page, within the page; right and bottom exclusive.
    score : how sure the detector is, 0..1.
    order : place in the reading order: 0, 1, 2, ... without a gap over the regions of one page.
    polygon : corners in pixels of the page, where the outline is known to differ from the box.
    """

    label: str
    box: tuple[float, float, float, float]
    score: float
    order: int
    polygon: tuple[tuple[float, float], ...] | None = None
