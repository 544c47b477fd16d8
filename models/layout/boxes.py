"""Detections -> regions of a page: the steps of ``DetectionRules``, each a function, in the vendors' order."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from .decode import Detections
from .labels import LABELS
from .regions import Region
from .rules import DetectionRules

_PICTURES = frozenset({"image", "table", "seal", "chart"})
_LEAST_SIDE = 6  # least side of a block that is worth reading, pixels
# Share of the page from which on an image counts as the page itself.
_PAGE_SIZED_LANDSCAPE, _PAGE_SIZED_PORTRAIT = 0.82, 0.93


def regions(found: Detections, rules: DetectionRules, width: int, height: int) -> list[Region]:
    """The regions that the rules keep, in reading order, within a page of ``width`` x ``height`` pixels."""
    if rules.whole_pixels:
        found = found.with_boxes(np.rint(found.boxes))
    found = found.with_boxes(found.boxes.astype(np.float64))
    found = above_threshold(found, rules)
    found = found.take(_shown(found.boxes, width, height))  # first: else an empty box could displace another
    found = without_duplicates(found, rules)
    if not rules.page_sized_images:
        found = without_page_sized_images(found, width, height)
    found = without_nested(found, rules)
    found = found.take(np.argsort(found.ranks, kind="stable"))
    found = found.with_boxes(unclipped(found.boxes, rules.unclip))
    placed = _placed(found, width, height)
    return in_sequence(without_overlaps(placed) if rules.apart else placed)


def above_threshold(found: Detections, rules: DetectionRules) -> Detections:
    """Detections whose score is enough for their label."""
    least = np.array([rules.thresholds.get(label, rules.threshold) for label in LABELS])[found.labels]
    return found.take(found.scores >= least if rules.keep_at_threshold else found.scores > least)


def without_duplicates(found: Detections, rules: DetectionRules) -> Detections:
    """Non-maximum suppression: a box that covers much the same as one with a higher score is removed."""
    same = np.inf if rules.same_label_iou is None else rules.same_label_iou
    other = np.inf if rules.other_label_iou is None else rules.other_label_iou
    overlap = _iou(found.boxes)
    limit = np.where(found.labels[:, None] == found.labels[None, :], same, other)
    waiting = list(np.argsort(-found.scores, kind="stable"))
    kept: list[int] = []
    while waiting:
        surest = waiting.pop(0)
        kept.append(surest)
        waiting = [one for one in waiting if overlap[surest, one] < limit[surest, one]]
    return found.take(np.array(kept, np.int64))


def without_page_sized_images(found: Detections, width: int, height: int) -> Detections:
    """Without images that cover nearly the whole page, unless there are no other boxes."""
    if len(found) < 2:
        return found
    left, top, right, bottom = np.clip(found.boxes, 0, [width, height, width, height]).T
    most = (_PAGE_SIZED_LANDSCAPE if width > height else _PAGE_SIZED_PORTRAIT) * width * height
    stay = (found.labels != LABELS.index("image")) | ((right - left) * (bottom - top) <= most)
    return found.take(stay) if stay.any() else found


def without_nested(found: Detections, rules: DetectionRules) -> Detections:
    """Without boxes inside a box of a ``large`` label, and without those around a box of a ``small`` one.

    A box around a ``small`` one stays if it has that label, too, and is inside another. With ``keep_one``, boxes that
    were removed for boxes that are themselves removed come back, the largest first.
    """
    inside = _inside(found.boxes, rules.inside) & ~_of(found, rules.never_inside)[:, None]
    together = inside | inside.T
    if rules.keep_one:
        inside &= ~(inside.T & _larger(found))
    inside_large = (inside & _of(found, rules.large)[None, :]).any(axis=1)
    stay = ~inside_large
    if rules.keep_one:
        inside &= stay[:, None]
    for label in rules.small:
        of_label = inside & _of(found, {label})[:, None]
        stay &= ~of_label.any(axis=0) | of_label.any(axis=1)
    while rules.keep_one and (lost := ~stay & ~together[:, stay].any(axis=1)).any():
        stay[np.argmax(np.where(lost, _areas(found.boxes), -1))] = True
    return found.take(stay)


def unclipped(boxes: np.ndarray, ratios: tuple[float, float]) -> np.ndarray:
    """[n, 4] boxes stretched about their centres by the ratios of width and height."""
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    centre, half = boxes[:, :2] + half, half * np.asarray(ratios)
    return np.concatenate([centre - half, centre + half], axis=1)


def without_overlaps(placed: Sequence[Region]) -> list[Region]:
    """PaddleX's ``filter_overlap_boxes``: the blocks to read where several show much the same."""
    kept = [one for one in placed if one.label != "reference"]
    dropped: set[int] = set()
    for i, one in enumerate(kept):
        if min(_sides(one)) < _LEAST_SIDE:
            dropped.add(i)
        for j in range(i + 1, len(kept)):
            if not dropped.isdisjoint((i, j)):
                continue
            dropped |= _needless(i, one, j, kept[j])
    return [one for i, one in enumerate(kept) if i not in dropped]


def in_sequence(placed: Sequence[Region]) -> list[Region]:
    """The same regions, with their order counted 0, 1, 2, ..."""
    return [
        Region(one.label, one.box, one.score, place, one.polygon) for place, one in enumerate(placed)
    ]  # fmt: skip


def _needless(i: int, one: Region, j: int, other: Region) -> set[int]:
    """The block of two that need not be read beside the other."""
    smaller = min(_area(one), _area(other))
    overlap = _intersection(one, other) / smaller if smaller else 0.0
    labels = {one.label, other.label}
    if "inline_formula" in labels:
        formulas = {place for place, region in ((i, one), (j, other)) if region.label == "inline_formula"}
        return formulas if overlap > 0.5 else set()
    if overlap <= 0.7:
        return set()
    # A picture does not replace the text inside; a table does.
    if labels & _PICTURES and len(labels) > 1 and ("table" not in labels or labels <= _PICTURES):
        return set()
    return {j} if _area(one) >= _area(other) else {i}


def _placed(found: Detections, width: int, height: int) -> list[Region]:
    """Regions in whole pixels of the page, without empty and equal ones."""
    boxes = _whole_pixels(found.boxes, width, height)
    placed: dict[tuple[str, tuple[float, ...]], Region] = {}
    for label, score, (left, top, right, bottom) in zip(found.labels, found.scores, boxes.tolist(), strict=True):
        if left < right and top < bottom:
            region = Region(LABELS[label], (left, top, right, bottom), float(score), len(placed))
            placed.setdefault((region.label, region.box), region)
    return list(placed.values())


def _whole_pixels(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """[n, 4] boxes within the page, in whole pixels as the vendors cut them."""
    return np.asarray(np.trunc(np.clip(boxes, 0, [width, height, width, height])))


def _shown(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """[n] whether boxes have at least one whole pixel on the page."""
    left, top, right, bottom = _whole_pixels(boxes, width, height).T
    return np.asarray((left < right) & (top < bottom))


def _of(found: Detections, labels: Collection[str]) -> np.ndarray:
    """[n] whether boxes have one of these labels."""
    return np.isin(found.labels, [LABELS.index(label) for label in labels])


def _iou(boxes: np.ndarray) -> np.ndarray:
    """[n, n] intersection over union, with both edges inside, as the vendors count."""
    sides = _intersections(boxes, 1)
    area = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)
    return np.asarray(sides / (area[:, None] + area[None, :] - sides))


def _inside(boxes: np.ndarray, share: float) -> np.ndarray:
    """[n, n] whether ``share`` of box i lies in box j; false for i = j and for an empty box i."""
    area = _areas(boxes)
    part = np.divide(
        _intersections(boxes, 0), area[:, None], out=np.zeros((len(area), len(area))), where=area[:, None] > 0
    )
    np.fill_diagonal(part, 0)
    return np.asarray(part >= share)


def _intersections(boxes: np.ndarray, edge: int) -> np.ndarray:
    """[n, n] areas that boxes share; edge : pixels to add to the difference of a side's ends."""
    least = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    most = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    return np.asarray(np.prod(np.maximum(0, most - least + edge), axis=2))


def _areas(boxes: np.ndarray) -> np.ndarray:
    """[n] of [n, 4] boxes."""
    return np.asarray(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))


def _larger(found: Detections) -> np.ndarray:
    """[n, n] whether box i is larger than box j; of equal boxes the first counts as larger."""
    area = _areas(found.boxes)
    place = np.empty(len(area), np.int64)
    place[np.argsort(-area, kind="stable")] = np.arange(len(area))
    return np.asarray(place[:, None] < place[None, :])


def _sides(region: Region) -> tuple[float, float]:
    left, top, right, bottom = region.box
    return right - left, bottom - top


def _area(region: Region) -> float:
    width, height = _sides(region)
    return width * height


def _intersection(one: Region, other: Region) -> float:
    width = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
    height = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    return max(0.0, width) * max(0.0, height)
