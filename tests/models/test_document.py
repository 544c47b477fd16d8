"""The task ``document`` without a model: which parts a page is read in, and how their texts become its Markdown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from models.blocks import Block
from models.catalog import CATALOG
from models.layout.labels import LABELS
from models.layout.page import Page, PartAnswer, to_markdown
from models.layout.page_rules import GLM_SDK, PADDLEX, PLAIN, PageRules
from models.layout.parts import Part, corners, is_blank, parts_of, picture_of
from models.layout.regions import Region
from models.layout.step import page_defaults, prompts_of, rules_of
from models.layout.task import DOCUMENT_PROMPT
from models.layout.texts import chart_table, without_fence
from models.model_errors import InvalidInput

WIDTH, HEIGHT = 1000, 1400


def region(label: str, box: tuple[float, float, float, float] = (0, 0, 100, 50), order: int = 0) -> Region:
    return Region(label, box, 0.9, order)


def column(*labels: str) -> list[Region]:
    """Regions below each other, none near the next."""
    return [region(label, (100, 100 * i, 500, 100 * i + 40), i) for i, label in enumerate(labels)]


def markdown(rules: PageRules, *blocks: tuple[str, str]) -> str:
    """Of parts below each other: (label, text as the family presents it)."""
    page, pieces = Page(WIDTH, HEIGHT, rules), []
    texts = [text for _, text in blocks]
    for part, text in zip(parts_of(column(*(label for label, _ in blocks)), rules), texts, strict=True):
        pieces.append(page.add(part, PartAnswer(text)))
    return "".join([*pieces, page.finish()])


# Which parts there are.


def test_every_label_of_the_detector_has_its_place_in_both_vendors_rules() -> None:
    def sorted_out(rules: PageRules) -> dict[str, str | None]:
        return {part.label: part.element for part in parts_of(column(*LABELS), replace(rules, drop_overlapping=False))}

    text = [
        "abstract", "algorithm", "content", "doc_title", "figure_title", "formula_number", "paragraph_title",
        "reference_content", "text", "vertical_text", "vision_footnote",
    ]  # fmt: skip
    read = {**dict.fromkeys(text, "text"), "table": "table", "display_formula": "formula", "inline_formula": "formula"}
    beside = ["aside_text", "footer", "footnote", "header", "number"]
    pictures = ["chart", "footer_image", "header_image", "image", "seal"]
    assert sorted_out(PADDLEX) == {**read, **dict.fromkeys(beside, "text"), **dict.fromkeys(pictures, None)}
    assert sorted_out(GLM_SDK) == {**read, "seal": "text", "chart": None, "image": None}


def test_pictures_are_read_too_where_that_is_asked_for() -> None:
    rules = PADDLEX.change({"read_also": ["chart", "seal", "image"]})
    parts = {part.label: part.element for part in parts_of(column("chart", "seal", "image", "footer_image"), rules)}
    assert parts == {"chart": "chart", "seal": "seal", "image": "text", "footer_image": None}


def test_what_others_cover_goes_before_anything_is_cut_out() -> None:
    def left(*given: tuple[str, tuple[float, float, float, float]]) -> list[str]:
        found = [Region(label, box, 0.9, i) for i, (label, box) in enumerate(given)]
        return [part.label for part in parts_of(found, replace(PADDLEX, join_text=False))]

    big, most, half = (0, 0, 100, 100), (0, 0, 100, 80), (0, 40, 100, 160)
    assert left(("text", big), ("doc_title", most)) == ["text"]
    assert left(("doc_title", most), ("text", big)) == ["text"]
    assert left(("text", big), ("text", big)) == ["text"]
    assert left(("text", big), ("text", half)) == ["text", "text"]
    assert left(("text", big), ("image", most)) == ["text", "image"]
    assert left(("table", big), ("text", most)) == ["table"]
    assert left(("table", big), ("image", most)) == ["table", "image"]
    assert left(("text", big), ("inline_formula", half)) == ["text"]
    assert left(("text", (0, 0, 100, 5)), ("text", (0, 50, 5, 90))) == []
    assert left(("reference", big), ("reference_content", most)) == ["reference_content"]


def joined(*given: tuple[str, tuple[float, float, float, float]]) -> list[tuple[int, ...]]:
    """Which regions are one part, by their numbers."""
    found = [Region(label, box, 0.9, i) for i, (label, box) in enumerate(given)]
    return [tuple(one.order for one in part.regions) for part in parts_of(found, PADDLEX)]


def test_text_that_goes_on_in_the_next_column_is_read_together() -> None:
    left, right = ("text", (0, 100, 300, 400)), ("text", (330, 100, 630, 200))
    assert joined(left, right) == [(0, 1)]
    assert joined(left, ("text", (400, 100, 700, 200))) == [(0,), (1,)], "the gap is a third of the width"
    assert joined(left, ("text", (330, 500, 630, 600))) == [(0,), (1,)], "it begins below"
    assert joined(left, ("doc_title", (330, 100, 630, 200))) == [(0,), (1,)]
    assert joined(left, ("image", (100, 0, 200, 90)), right) == [(0, 2), (1,)], "a picture between follows"


def test_text_that_runs_around_a_picture_is_read_together() -> None:
    upper, picture = ("text", (0, 0, 300, 100)), ("image", (410, 100, 600, 300))
    narrow = ("text", (0, 110, 400, 200))
    assert joined(upper, narrow, ("image", (350, 50, 600, 300))) == [(0, 1), (2,)]
    assert joined(upper, narrow, picture) == [(0,), (1,), (2,)], "their union does not touch it"
    assert joined(upper, ("text", (0, 110, 300, 200)), picture) == [(0,), (1,), (2,)], "both edges agree"
    assert joined(upper, ("text", (0, 170, 400, 230)), ("image", (350, 50, 600, 300))) == [(0,), (1,), (2,)], "too far"


def test_a_stack_that_would_be_too_tall_is_read_in_its_parts_and_their_order() -> None:
    narrow = [("text", (x, 0, x + 100, 160)) for x in (0, 110)]
    assert joined(narrow[0], ("image", (500, 500, 600, 600)), narrow[1]) == [(0,), (1,), (2,)]


def test_a_stack_is_drawn_on_white_with_its_edges_aligned() -> None:
    page = Image.new("RGB", (WIDTH, HEIGHT), "black")
    upper, lower = region("text", (0, 0, 300, 50)), region("text", (0, 60, 200, 100), 1)
    for side, white in (("left", 299), ("right", 0), ("center", 10)):
        picture = picture_of(Part((upper, lower), "text", (side,)), page, PADDLEX)
        assert picture.size == (300, 90)
        assert picture.getpixel((white, 70)) == (255, 255, 255)
        assert picture.getpixel((150, 70)) == (0, 0, 0)


def test_a_formula_is_cut_to_its_ink_and_everything_else_to_its_box_with_the_margin() -> None:
    page = Image.new("RGB", (WIDTH, HEIGHT), "white")
    ImageDraw.Draw(page).rectangle((140, 150, 179, 169), fill="black")
    formula = Part((region("display_formula", (100, 100, 300, 200)),), "formula")
    assert picture_of(formula, page, PADDLEX).size == (40, 20)
    assert picture_of(formula, page, GLM_SDK).size == (200, 100)
    empty = Part((region("display_formula", (400, 400, 500, 450)),), "formula")
    assert picture_of(empty, page, PADDLEX).size == (100, 50)
    text = Part((region("text", (100, 0, 300, 200)),), "text")
    assert picture_of(text, page, PADDLEX.change({"margin": 10})).size == (220, 210)


# How the texts are put together.


@pytest.mark.parametrize(
    ("title", "written"),
    [
        ("Introduction", "## Introduction"),
        ("1 Introduction.", "## 1 Introduction"),
        ("1.Introduction", "## 1. Introduction"),
        ("1.2  Methods", "### 1.2 Methods"),
        ("1.2.3 Of e.g. this", "#### 1.2.3 Of e.g. this"),
        ("1.2.3.4.5.6.7 Deep", "###### 1.2.3.4.5.6.7 Deep"),
        ("(2) Second", "## (2) Second"),
        ("IV. Results", "## IV. Results"),
        ("一、背景", "## 一、 背景"),
        ("Two\nlines", "## Two lines"),
        ("Hyphen-\nated", "## Hyphenated"),
        ("# Already one", "## Already one"),
        ("2024", "## 2024"),
    ],
)
def test_titles_get_their_level_from_their_number(title: str, written: str) -> None:
    assert markdown(PADDLEX, ("paragraph_title", title)) == written


def test_titles_can_all_be_of_one_level() -> None:
    assert markdown(GLM_SDK, ("paragraph_title", "1.2.3 Methods")) == "## 1.2.3 Methods"
    assert markdown(PADDLEX.change({"title_levels": False}), ("paragraph_title", "1.2 A")) == "## 1.2 A"
    for rules in (PADDLEX, GLM_SDK):
        assert markdown(rules, ("doc_title", "A\nbook")) == "# A book"


@pytest.mark.parametrize(
    ("rules", "label", "text", "written"),
    [
        (PADDLEX, "text", "one\ntwo\n\nthree", "one\n\ntwo\n\nthree"),
        (PLAIN, "reference_content", "[1] A\nB", "[1] A\n\nB"),
        (PADDLEX.change({"double_line_ends": False}), "text", "one\ntwo", "one\ntwo"),
        (PADDLEX, "abstract", "Abstract. We read\npages.", "## Abstract\n\nWe read\n\npages."),
        (PADDLEX, "abstract", "摘要：中文", "## 摘要\n\n中文"),
        (PADDLEX, "abstract", "Abstraction is all.", "Abstraction is all."),
        (GLM_SDK, "abstract", "Abstract\nWe", "Abstract\n\nWe"),
        (PADDLEX, "content", "1 A ... 2\n2 B ... 3", "1 A ... 2  \n2 B ... 3"),
        (PADDLEX, "algorithm", "\nfor x:\n  y\n", "for x:\n  y"),
        (PADDLEX, "figure_title", "Figure 1:\nA dog", "Figure 1: A dog"),
        (PADDLEX, "display_formula", " $$ x = 1 $$ ", "$$ x = 1 $$"),
        (GLM_SDK, "display_formula", "\\[ x = 1 \\]", "$$\nx = 1\n$$"),
        (GLM_SDK, "inline_formula", "```latex\nx = 1\n```", "$$\nx = 1\n$$"),
        (PADDLEX, "table", "<table><tr><td>1</td></tr></table>", "<table><tr><td>1</td></tr></table>"),
        (GLM_SDK, "text", "· one\n• two\n* three", "- one\n\n- two\n\n- three"),
        (GLM_SDK, "text", "(1)four\n2.five\n1.5 six", "(1) four\n\n2. five\n\n1.5 six"),
        (GLM_SDK, "text", "```\ncode\nmore", "```\ncode\nmore\n```"),
        (GLM_SDK, "seal", "ACME", "ACME"),
        (PADDLEX, "seal", "", "<!-- image [100, 0, 500, 40] -->"),
        (PADDLEX.change({"read_also": ["seal"]}), "seal", "ACME", "<!-- image [100, 0, 500, 40] -->\n\nACME"),
        (PADDLEX.change({"read_also": ["chart"]}), "chart", "a | b\n1 | 2",
         "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table>"),
        (GLM_SDK, "image", "", "<!-- image [100, 0, 500, 40] -->"),
        (PADDLEX.change({"formula_fence": "\\[{}\\]"}), "display_formula", "$$x$$", "\\[x\\]"),
    ],
)  # fmt: skip
def test_each_label_is_written_as_its_vendor_writes_it(rules: PageRules, label: str, text: str, written: str) -> None:
    assert markdown(rules, (label, text)) == written


def test_headers_and_footers_are_told_and_not_in_the_text_unless_they_are_asked_for() -> None:
    beside = [("header", "Head"), ("text", "Body"), ("number", "7"), ("footnote", "* a note"), ("aside_text", "arXiv")]
    assert markdown(PADDLEX, *beside) == "Body"
    shown = PADDLEX.change({"hidden": ["number"]})
    assert markdown(shown, *beside) == "Head\n\nBody\n\n* a note\n\narXiv"
    assert [part.label for part in parts_of(column(*(label for label, _ in beside)), GLM_SDK)] == ["text"]


def test_formula_numbers_are_hidden_or_tags_of_the_formula_beside_them() -> None:
    after = [("display_formula", "$$x$$"), ("formula_number", "(1)"), ("text", "so")]
    before = [("formula_number", "$(2)$"), ("display_formula", "$$y$$")]
    alone = [("formula_number", "(3)"), ("text", "so"), ("display_formula", "$$z$$")]
    assert markdown(PADDLEX, *after) == "$$ x $$\n\nso"
    tagged = PADDLEX.change({"formula_numbers": "tag"})
    assert markdown(tagged, *after) == "$$ x \\tag{1} $$\n\nso"
    assert markdown(GLM_SDK, *before) == "$$\ny \\tag{2}\n$$"
    assert markdown(GLM_SDK, *alone) == "so\n\n$$\nz\n$$"


def test_a_word_that_goes_on_in_the_next_part_is_whole() -> None:
    parts = [("text", "This is a hyphen-"), ("text", "ated word."), ("text", "Next.")]
    assert markdown(GLM_SDK, *parts) == "This is a hyphenated word.\n\nNext."
    assert markdown(PADDLEX, *parts) == "This is a hyphen-\n\nated word.\n\nNext."
    assert markdown(GLM_SDK, ("text", "ends in a dash -"), ("text", "and on")) == "ends in a dash -\n\nand on"
    assert markdown(GLM_SDK, ("text", "the well-"), ("text", "Known")) == "the well-\n\nKnown"


def test_a_text_between_two_items_of_a_list_is_one() -> None:
    items = [("text", "· one"), ("text", "two"), ("text", "· three")]
    assert markdown(GLM_SDK, *items) == "- one\n\n- two\n\n- three"
    assert markdown(GLM_SDK, ("text", "one"), ("text", "two"), ("text", "· three")) == "one\n\ntwo\n\n- three"


def test_a_part_that_could_not_be_read_leaves_no_trace_in_the_text_and_its_block() -> None:
    page = Page(WIDTH, HEIGHT, PADDLEX)
    first, second, third = parts_of(column("text", "table", "text"), PADDLEX)
    text = (
        page.add(first, PartAnswer("one"))
        + page.add(second, PartAnswer())
        + page.add(third, PartAnswer("two"))
        + page.finish()
    )
    assert text == "one\n\ntwo"
    assert [(block.kind, block.text) for block in page.blocks] == [("text", "one"), ("table", ""), ("text", "two")]


def test_fences_are_taken_off_and_formulas_in_a_line_stay() -> None:
    assert without_fence("$x$") == "x"
    assert without_fence("\\(x\\)") == "x"
    assert without_fence("$x$ and $y$") == "$x$ and $y$"
    assert without_fence("$$") == ""
    assert without_fence("x + $y$") == "x + $y$"
    assert chart_table("no table") == "no table"
    assert chart_table("| a | b |\n|---|---|\n| <1 | |") == (
        "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>&lt;1</td><td></td></tr></tbody></table>"
    )


def test_an_answer_loses_endless_repetition_and_lone_dollars_where_its_vendor_takes_them_out() -> None:
    loop = "Total: " + "and so on and " * 20
    assert PADDLEX.cleaned(loop, "text") == "Total:"
    assert PADDLEX.cleaned(loop, "table") == loop
    assert GLM_SDK.cleaned(loop, "text") == loop
    assert PADDLEX.cleaned("$ \\(x\\) $5", "text") == " \\(x\\) 5"
    assert PADDLEX.cleaned("$5", "text") == "$5"


# Whatever a detector finds.

BOXES = st.tuples(*[st.floats(-50, 1500)] * 4)
REGIONS = st.lists(st.tuples(st.sampled_from(LABELS), BOXES), max_size=30).map(
    lambda found: [
        Region(label, (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), 0.5, i)
        for i, (label, (x0, y0, x1, y1)) in enumerate(found)
    ]
)


@given(found=REGIONS, rules=st.sampled_from([PADDLEX, GLM_SDK, PLAIN]), drop=st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_part_is_lost_none_comes_twice_and_their_order_is_kept(
    found: list[Region], rules: PageRules, drop: bool
) -> None:
    rules = replace(rules, drop_overlapping=drop and rules.drop_overlapping)
    parts = parts_of(found, rules)
    orders = [one.order for part in parts for one in part.regions]
    assert len(set(orders)) == len(orders)
    firsts = [part.regions[0].order for part in parts]
    assert firsts == sorted(firsts)
    assert all(list(part.regions) == sorted(part.regions, key=lambda one: one.order) for part in parts)
    if not rules.drop_overlapping:
        assert sorted(orders) == [one.order for one in found if one.label not in rules.dropped]
    page = Image.new("RGB", (600, 800), "white")
    for part in parts:
        assert min(picture_of(part, page, rules).size) >= 1
        for one in part.regions:
            x0, y0, x1, y1 = corners(one, *page.size, rules.margin)
            assert 0 <= x0 < x1 <= 600
            assert 0 <= y0 < y1 <= 800


@given(found=REGIONS, rules=st.sampled_from([PADDLEX, GLM_SDK]), data=st.data())
@settings(max_examples=100, deadline=None)
def test_what_was_given_of_a_page_is_its_text_whatever_comes_next(
    found: list[Region], rules: PageRules, data: st.DataObject
) -> None:
    rules = replace(rules, drop_overlapping=False)
    page, parts = Page(600, 800, rules), parts_of(found, rules)
    words = st.sampled_from(["", "word", "· item", "a hyphen-", "ated", "(1)", "$$x$$", "a\nb", "<!-- image [1] -->"])
    pieces = [page.add(part, PartAnswer(data.draw(words))) for part in parts]
    text = "".join([*pieces, page.finish()])
    assert len(page.blocks) == sum(len(part.regions) for part in parts)
    assert [block.label for block in page.blocks] == [one.label for part in parts for one in part.regions]
    written = [to_markdown(block, rules) for block in page.blocks]
    assert text == "\n\n".join(one for one in written if one)


def test_a_blank_page_is_one_with_hardly_a_dark_pixel() -> None:
    page = Image.new("RGB", (1000, 1000), "white")
    assert is_blank(page)
    ImageDraw.Draw(page).point([(5, 5), (9, 9)], fill="black")
    assert is_blank(page)
    noise = np.random.default_rng(0).normal(230, 8, (400, 400)).clip(0, 255).astype(np.uint8)
    assert is_blank(Image.fromarray(noise))
    ImageDraw.Draw(page).text((100, 100), "A few words", "black")
    assert not is_blank(page)


# Rules as settings.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"margins": 3}, "there is no rule 'margins'"),
        ({"settings": {}}, "there is no rule 'settings'"),
        ({"margin": -1}, "margin is -1; it must be a number of pixels"),
        ({"margin": True}, "a number of pixels"),
        ({"hidden": ["head"]}, "hidden is .*a list of some of abstract"),
        ({"hidden": "header"}, "a list of some of"),
        ({"read_also": ["table"]}, "a list of some of chart, seal, image"),
        ({"formula_numbers": "show"}, "it must be hide or tag"),
        ({"join_text": "yes"}, "it must be true or false"),
        ({"formula_fence": "$$"}, "where the formula goes"),
        ({"threshold": 2}, "a number from 0 to 1"),
    ],
)
def test_a_rule_that_cannot_be_is_explained(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        PADDLEX.change(changes)


def test_a_threshold_of_ones_own_is_for_all_labels() -> None:
    assert PADDLEX.boxes is None
    assert GLM_SDK.boxes is not None
    boxes = PADDLEX.change({"threshold": 0.7}).boxes
    assert boxes is not None
    assert (boxes.threshold, dict(boxes.thresholds)) == (0.7, {})
    changed = GLM_SDK.change({"threshold": 0.7}).boxes
    assert changed is not None
    assert changed.inside == GLM_SDK.boxes.inside


def test_each_model_reads_elements_with_its_own_tasks() -> None:
    assert prompts_of(CATALOG["paddleocr-vl"]) == {
        "text": "<image>OCR:", "table": "<image>Table Recognition:", "formula": "<image>Formula Recognition:",
        "chart": "<image>Chart Recognition:",
    }  # fmt: skip
    assert prompts_of(CATALOG["paddleocr-vl-1.6"])["seal"] == "<image>Seal Recognition:"
    assert prompts_of(CATALOG["tiny-ocr"]) == {"text": "<image>\nFree OCR."}
    assert rules_of(replace(CATALOG["tiny-ocr"], page={"margin": 4})).margin == 4
    assert page_defaults(CATALOG["paddleocr-vl"], DOCUMENT_PROMPT)["max_pixels"] == 1_003_520
    assert page_defaults(CATALOG["paddleocr-vl"], "<image>OCR:") == {}


def test_a_block_says_what_stands_where() -> None:
    page = Page(WIDTH, HEIGHT, PADDLEX)
    page.add(Part((region("paragraph_title", (9.6, 20.2, 300.4, 50)),), "text"), PartAnswer("1.1 A", 0.5))
    assert page.blocks == [Block("title", "1.1 A", (10, 20, 300, 50), "paragraph_title", 0.5, 3, score=0.9)]
