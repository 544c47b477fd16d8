"""What becomes of a detector's boxes: every rule by a case of its own, and what holds whatever the boxes are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layout.boxes import regions, unclipped, without_overlaps
from models.layout.decode import Detections
from models.layout.labels import LABELS
from models.layout.regions import Region
from models.layout.rules import GLM_OCR, PADDLEOCR_VL, PADDLEOCR_VL_15, DetectionRules

WIDTH, HEIGHT = 1000, 1400
Found = tuple[str, tuple[float, float, float, float], float]
PLAIN = DetectionRules(threshold=0.3)


def kept(found: list[Found], rules: DetectionRules, size: tuple[int, int] = (WIDTH, HEIGHT)) -> list[str]:
    """Labels that the rules leave; detections are read in the order given."""
    return [one.label for one in regions(detections(found), rules, *size)]


def detections(found: list[Found]) -> Detections:
    labels, boxes, scores = zip(*found, strict=True) if found else ((), (), ())
    return Detections(
        np.array([LABELS.index(label) for label in labels], np.int64),
        np.array(scores, np.float32),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.arange(len(found)),
    )


def apart(*labels_and_scores: tuple[str, float]) -> list[Found]:
    """Boxes that have nothing to do with each other."""
    return [(label, (10, 50 * i, 600, 50 * i + 40), score) for i, (label, score) in enumerate(labels_and_scores)]


# Thresholds.


@pytest.mark.parametrize(
    ("label", "least"),
    [("abstract", 0.5), ("table", 0.5), ("image", 0.5), ("display_formula", 0.4), ("doc_title", 0.4),
     ("inline_formula", 0.4), ("paragraph_title", 0.4), ("text", 0.4), ("vertical_text", 0.4), ("seal", 0.45)],
)  # fmt: skip
def test_paddleocr_vl_1_0_has_a_threshold_for_each_label(label: str, least: float) -> None:
    assert kept(apart((label, least - 0.001), (label, least + 0.001)), PADDLEOCR_VL) == [label]
    assert PADDLEOCR_VL.thresholds.get(label, PADDLEOCR_VL.threshold) == least


@pytest.mark.parametrize("label", LABELS)
def test_later_pipelines_have_one_threshold(label: str) -> None:
    assert kept(apart((label, 0.299), (label, 0.301)), PADDLEOCR_VL_15) == [label]
    assert kept(apart((label, 0.299), (label, 0.301)), GLM_OCR) == [label]


def test_a_score_that_equals_its_threshold_is_enough_where_the_rules_say_so() -> None:
    at = PLAIN.model_copy(update={"threshold": 0.25})
    assert kept(apart(("text", 0.25)), at) == []
    assert kept(apart(("text", 0.25)), at.model_copy(update={"keep_at_threshold": True})) == ["text"]


# Duplicates.


def test_of_two_boxes_of_one_label_at_one_place_the_surer_stays() -> None:
    here, near = (100, 100, 500, 300), (100, 100, 500, 240)  # IoU 0.7
    assert kept([("text", here, 0.5), ("text", near, 0.6)], PLAIN) == ["text"]
    (stays,) = regions(detections([("text", here, 0.5), ("text", near, 0.6)]), PLAIN, WIDTH, HEIGHT)
    assert stays.box == near
    assert kept([("text", here, 0.5), ("table", near, 0.6)], PLAIN) == ["text", "table"]


def test_of_two_labels_of_one_box_the_surer_stays() -> None:
    box = (100, 100, 500, 300)
    assert kept([("footnote", box, 0.82), ("text", box, 0.51)], PLAIN) == ["footnote"]


def test_boxes_that_share_less_than_six_tenths_both_stay() -> None:
    assert kept([("text", (0, 0, 100, 100), 0.9), ("text", (0, 42, 100, 142), 0.8)], PLAIN) == ["text", "text"]


def test_duplicates_stay_where_the_rule_is_switched_off() -> None:
    box, near = (100, 100, 500, 300), (100, 100, 500, 299)
    off = PLAIN.model_copy(update={"same_label_iou": None, "other_label_iou": None})
    assert kept([("text", box, 0.9), ("text", near, 0.8), ("table", box, 0.7)], off) == ["text", "text", "table"]


# Images of the whole page.


@pytest.mark.parametrize(("size", "share"), [((1000, 1400), 0.93), ((1000, 1000), 0.93), ((1400, 1000), 0.82)])
def test_an_image_of_nearly_the_whole_page_goes_when_there_is_anything_else(
    size: tuple[int, int], share: float
) -> None:
    width, height = size
    text: Found = ("text", (10, 10, 200, 40), 0.9)
    over: Found = ("image", (0, 0, width, np.ceil(height * (share + 0.005))), 0.9)
    under: Found = ("image", (0, 0, width, np.floor(height * (share - 0.005))), 0.9)
    assert kept([over, text], PLAIN, size) == ["text"]
    assert kept([under, text], PLAIN, size) == ["image", "text"]
    assert kept([over], PLAIN, size) == ["image"]
    assert kept([("table", over[1], 0.9), text], PLAIN, size) == ["table", "text"]
    assert kept([over, text], PLAIN.model_copy(update={"page_sized_images": True}), size) == ["image", "text"]


def test_images_of_the_whole_page_stay_when_there_is_nothing_but_them() -> None:
    off = PLAIN.model_copy(update={"same_label_iou": None})
    assert kept([("image", (0, 0, 1000, 1400), 0.9), ("image", (2, 2, 999, 1399), 0.8)], off) == ["image", "image"]


# Boxes in boxes.


@pytest.mark.parametrize("label", ["chart", "display_formula", "doc_title", "inline_formula", "paragraph_title"])
@pytest.mark.parametrize("rules", [PADDLEOCR_VL, PADDLEOCR_VL_15])
def test_what_lies_in_a_large_label_goes(label: str, rules: DetectionRules) -> None:
    around, within = (100, 100, 500, 500), (120, 120, 300, 300)
    assert kept([(label, around, 0.9), ("text", within, 0.9)], rules) == [label]
    assert kept([("text", around, 0.9), (label, within, 0.9)], rules) == ["text", label]


@pytest.mark.parametrize(("rules", "out", "inside"), [(PADDLEOCR_VL_15, 0.12, 0.09), (GLM_OCR, 0.22, 0.19)])
def test_a_box_lies_in_another_with_nine_or_eight_tenths_of_it(
    rules: DetectionRules, out: float, inside: float
) -> None:
    title: Found = ("doc_title", (0, 0, 500, 500), 0.9)
    assert kept([title, ("text", (400 + 100 * out, 0, 500 + 100 * out, 100), 0.9)], rules) == ["doc_title", "text"]
    assert kept([title, ("text", (400 + 100 * inside, 0, 500 + 100 * inside, 100), 0.9)], rules) == ["doc_title"]


@pytest.mark.parametrize("label", ["image", "seal", "chart"])
def test_glm_ocr_never_drops_a_picture_for_what_is_around_it(label: str) -> None:
    assert kept([("text", (0, 0, 500, 500), 0.9), (label, (10, 10, 90, 90), 0.9)], GLM_OCR) == ["text", label]


def test_glm_ocr_drops_what_lies_in_text_and_keeps_what_lies_in_a_reference() -> None:
    around, within = (0, 0, 500, 500), (10, 10, 90, 90)
    assert kept([("text", around, 0.9), ("footnote", within, 0.9)], GLM_OCR) == ["text"]
    assert kept([("reference", around, 0.9), ("reference_content", within, 0.9)], GLM_OCR) == [
        "reference", "reference_content",
    ]  # fmt: skip


def test_what_a_small_label_lies_in_goes_unless_it_is_one_itself_within_another() -> None:
    rules = PLAIN.model_copy(update={"small": frozenset({"reference"})})
    outer, middle, inner = (0, 0, 900, 900), (10, 10, 500, 500), (20, 20, 200, 200)
    assert kept([("image", middle, 0.9), ("reference", inner, 0.9)], rules) == ["reference"]
    found: list[Found] = [("table", outer, 0.9), ("reference", middle, 0.9), ("reference", inner, 0.9)]
    assert kept(found, rules) == ["reference", "reference"]


def test_of_boxes_that_lie_in_each_other_the_largest_stays_and_the_vendors_drop_all() -> None:
    found: list[Found] = [("text", (100, 100, 500, 300), 0.9), ("algorithm", (100, 100, 500, 310), 0.8)]  # IoU 0.95
    assert kept(found, GLM_OCR) == ["algorithm"]
    assert kept(found, GLM_OCR.model_copy(update={"keep_one": False})) == []


# Order, places.


def test_regions_are_sorted_by_the_detectors_order_and_counted_without_gaps() -> None:
    found = detections(apart(("text", 0.9), ("table", 0.2), ("doc_title", 0.9)))
    found = Detections(found.labels, found.scores, found.boxes, np.array([7, 4, 2]))
    placed = regions(found, PLAIN, WIDTH, HEIGHT)
    assert [(one.label, one.order) for one in placed] == [("doc_title", 0), ("text", 1)]


def test_boxes_are_stretched_about_their_centre() -> None:
    assert unclipped(np.array([[100.0, 100.0, 200.0, 140.0]]), (1.2, 0.5)).tolist() == [[90, 110, 210, 130]]


def test_boxes_end_at_the_edge_of_the_page_and_what_is_outside_is_none() -> None:
    found: list[Found] = [
        ("text", (-20.4, -3, 50, 60), 0.9), ("text", (900, 1300, 1100, 1500), 0.9), ("text", (1001, 20, 1100, 90), 0.9),
        ("text", (500.2, 500, 500.4, 600), 0.9),
    ]  # fmt: skip
    placed = regions(detections(found), PLAIN.model_copy(update={"whole_pixels": False}), WIDTH, HEIGHT)
    assert [one.box for one in placed] == [(0, 0, 50, 60), (900, 1300, 1000, 1400)]


def test_corners_are_rounded_first_or_cut_at_the_end() -> None:
    found: list[Found] = [("text", (10.6, 10.4, 50.5, 60.7), 0.9)]
    assert regions(detections(found), PADDLEOCR_VL_15, WIDTH, HEIGHT)[0].box == (11, 10, 50, 61)
    assert regions(detections(found), GLM_OCR, WIDTH, HEIGHT)[0].box == (10, 10, 50, 60)


# PaddleX's last step.


def blocks(*found: tuple[str, tuple[float, float, float, float]]) -> list[Region]:
    return [Region(label, box, 0.9, i) for i, (label, box) in enumerate(found)]


def left(*found: tuple[str, tuple[float, float, float, float]]) -> list[str]:
    return [one.label for one in without_overlaps(blocks(*found))]


def test_references_and_slivers_are_not_read() -> None:
    assert left(("reference", (0, 0, 900, 900)), ("reference_content", (10, 10, 800, 100))) == ["reference_content"]
    assert left(("text", (0, 0, 5, 100)), ("text", (0, 200, 100, 205)), ("text", (0, 300, 6, 306))) == ["text"]


def test_of_two_blocks_that_show_much_the_same_the_larger_is_read() -> None:
    large, within = (0, 0, 400, 400), (0, 0, 100, 100)
    assert left(("text", large), ("footnote", within)) == ["text"]
    assert left(("footnote", within), ("text", large)) == ["text"]
    assert left(("text", within), ("footnote", within)) == ["text"]
    assert left(("text", large), ("footnote", (330, 0, 430, 100))) == ["text", "footnote"]  # 0.7 of it


def test_an_inline_formula_goes_with_half_of_it_in_a_block() -> None:
    assert left(("text", (0, 0, 400, 100)), ("inline_formula", (350, 0, 440, 100))) == ["text"]
    assert left(("text", (0, 0, 400, 100)), ("inline_formula", (360, 0, 440, 100))) == ["text", "inline_formula"]
    assert left(("inline_formula", (0, 0, 90, 90)), ("inline_formula", (0, 0, 90, 80))) == []


@pytest.mark.parametrize("picture", ["image", "seal", "chart"])
def test_pictures_and_the_text_in_them_are_both_read(picture: str) -> None:
    around, within = (0, 0, 400, 400), (10, 10, 90, 90)
    assert left((picture, around), ("text", within)) == [picture, "text"]
    assert left((picture, around), ("table", within)) == [picture, "table"]
    assert left((picture, around), (picture, within)) == [picture]


def test_text_in_a_table_is_read_with_the_table() -> None:
    assert left(("table", (0, 0, 400, 400)), ("text", (10, 10, 90, 90))) == ["table"]


# What holds whatever the boxes are.


@st.composite
def pages(draw: st.DrawFn) -> tuple[Detections, int, int]:
    """Up to 60 boxes, some of which nearly repeat or hold others, on a page of any size."""
    width, height = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(0, 60))
    corners = np.sort(rng.uniform(-0.1, 1.1, (count, 2, 2)), axis=1) * [width, height]
    for copied, over in rng.integers(0, max(count, 1), (count // 2, 2)):
        corners[over] = np.sort(corners[copied] + rng.normal(0, 4, (2, 2)), axis=0)
    found = Detections(
        rng.integers(0, 25, count), rng.uniform(0, 1, count).astype(np.float32),
        corners.reshape(-1, 4).astype(np.float32), rng.permutation(count),
    )  # fmt: skip
    return found, width, height


RULES: Any = st.sampled_from([PADDLEOCR_VL, PADDLEOCR_VL_15, GLM_OCR]).flatmap(
    lambda rules: st.booleans().map(lambda apart: rules.model_copy(update={"apart": apart}))
)


@given(pages(), RULES)
@settings(max_examples=150, deadline=None)
def test_regions_are_within_the_page_counted_in_order_and_none_comes_twice(
    page: tuple[Detections, int, int], rules: DetectionRules
) -> None:
    found, width, height = page
    placed = regions(found, rules, width, height)
    assert [one.order for one in placed] == list(range(len(placed)))
    assert len({(one.label, one.box) for one in placed}) == len(placed)
    for one in placed:
        left, top, right, bottom = one.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert all(side == int(side) for side in one.box)
    rank = {float(score): int(place) for score, place in zip(found.scores, found.ranks, strict=True)}
    assert all(rank[one.score] < rank[other.score] for one, other in pairwise(placed))


@given(pages(), RULES)
@settings(max_examples=150, deadline=None)
def test_no_block_is_lost_without_another_in_its_place(
    page: tuple[Detections, int, int], rules: DetectionRules
) -> None:
    found, width, height = page
    placed = regions(found, rules.model_copy(update={"apart": False}), width, height)
    least = np.array([rules.thresholds.get(label, rules.threshold) for label in LABELS])[found.labels]
    for score, box in zip(found.scores[found.scores > least], found.boxes[found.scores > least], strict=True):
        left, top, right, bottom = np.trunc(np.clip(box, 0, [width, height, width, height]))
        if right - left < 2 or bottom - top < 2:
            continue
        meets = [
            one for one in placed
            if min(right, one.box[2]) > max(left, one.box[0]) and min(bottom, one.box[3]) > max(top, one.box[1])
        ]  # fmt: skip
        assert meets, (score, box)


@given(pages(), RULES, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_order_of_queries_changes_nothing(
    page: tuple[Detections, int, int], rules: DetectionRules, seed: int
) -> None:
    found, width, height = page
    mixed = found.take(np.random.default_rng(seed).permutation(len(found)))
    assert regions(mixed, rules, width, height) == regions(found, rules, width, height)


def test_three_hundred_boxes_and_none_are_regions() -> None:
    side = [(x, y) for y in range(20) for x in range(15)]
    grid: list[Found] = [("text", (60 * x, 60 * y, 60 * x + 50, 60 * y + 50), 0.9) for x, y in side]
    assert len(regions(detections(grid), PADDLEOCR_VL_15, WIDTH, HEIGHT)) == 300
    assert regions(detections([]), PADDLEOCR_VL_15, WIDTH, HEIGHT) == []
