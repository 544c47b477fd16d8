"""Results as Markdown, JSON and text."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.blocks import figures_of
from models.grounding import Box, parse_boxes
from server.writers import FORMATS, PageResult
from server.writers.figures import cut_out, overlay
from tests.writers.made import NOTHING

GROUNDED = (
    "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 100]]<|/det|>\n# Heading\n"
    "<|ref|>image<|/ref|><|det|>[[0, 200, 500, 600]]<|/det|>\n"
    "<|ref|>text<|/ref|><|det|>[[0, 700, 999, 999]]<|/det|>\nWords \\coloneqq 1"
)


def done(page: int, text: str, **more: Any) -> PageResult:
    return PageResult(page, "done", text=text, width=100, height=200, finish_detail="eos", **more)


def written(form: str, results: list[PageResult], page_count: int | None = None) -> str:
    file = io.StringIO()
    writer = FORMATS[form].write(file, NOTHING)
    writer.begin({"document": "x.pdf", "page_count": page_count or len(results)})
    for result in results:
        writer.page(result)
    writer.end()
    return file.getvalue()


FAILED = PageResult(2, "failed", "no --> way\nat all")


@pytest.mark.parametrize("transient", [True, False])
def test_a_failure_that_may_pass_stays_one_when_it_is_read_back(transient: bool) -> None:
    failure = PageResult(2, "failed", "busy", transient, seconds=1.5)
    assert PageResult.from_json(json.loads(json.dumps(failure.to_json()))) == failure
    assert ("transient" in failure.to_json()) == transient


def test_markdown_of_one_page_is_its_text() -> None:
    assert written("md", [done(1, "Hello")]) == "Hello\n"


def test_markdown_says_where_pages_begin_and_which_failed() -> None:
    text = written("md", [done(1, "one"), FAILED, done(3, "")])
    expected = "<!-- page 1 -->\n\none\n\n<!-- page 2 could not be read: no - -> way at all -->\n\n<!-- page 3 -->\n"
    assert text == expected


def test_text_has_a_form_feed_between_pages_and_no_tags() -> None:
    assert written("txt", [done(1, GROUNDED), FAILED, done(3, "three")]) == "# Heading\nWords := 1\n\f\fthree\n"


def test_figures_are_linked_where_there_are_pictures_and_left_out_where_not() -> None:
    assert "![](images/x-p1-0.jpg)" in done(1, GROUNDED, figures=("images/x-p1-0.jpg",)).markdown()
    assert "![]" not in done(1, GROUNDED).markdown()


def test_links_of_figures_are_links_whatever_the_document_is_called() -> None:
    figures = ("images/Größe (1) [a] 50% #2\udcff-p1-0.jpg",)
    result = done(1, GROUNDED, boxes=tuple(parse_boxes(GROUNDED, 100, 200)), figures=figures)
    assert "![](images/Größe%20%281%29%20%5Ba%5D%2050%25%20%232%FF-p1-0.jpg)\n" in result.markdown()
    assert result.to_json()["boxes"][1]["image"] == figures[0]  # a path


def test_json_has_boxes_in_pixels_and_the_pictures_of_figures() -> None:
    boxes = tuple(parse_boxes(GROUNDED, 100, 200))
    document = json.loads(written("json", [done(1, GROUNDED, boxes=boxes, figures=("images/a.jpg",)), FAILED]))
    assert document["document"] == "x.pdf"
    first, second = document["pages"]
    assert first["boxes"][0] == {"label": "title", "text": "# Heading", "box": [0, 0, 100, 20]}
    assert first["boxes"][1] == {"label": "image", "text": "", "box": [0, 40, 50, 120], "image": "images/a.jpg"}
    assert (first["width"], first["height"], first["finish_detail"]) == (100, 200, "eos")
    assert second == {"page": 2, "state": "failed", "error": FAILED.error, "seconds": 0.0}


def test_json_without_pages_is_still_json() -> None:
    assert json.loads(written("json", [], 0))["pages"] == []


def test_names_that_are_no_text_make_valid_json(tmp_path) -> None:
    path = tmp_path / "x.json"
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        writer = FORMATS["json"].write(file, NOTHING)
        writer.begin({"document": "bad\udcff.pdf", "page_count": 0})
        writer.end()
    assert json.loads(path.read_text(encoding="utf-8"))["document"] == "bad\udcff.pdf"


_CORNER = st.integers(0, 10_000)
_BOXES = st.lists(
    st.builds(Box, st.sampled_from(["image", "text", ""]), st.text(max_size=20), st.tuples(*[_CORNER] * 4)), max_size=5
)


@given(st.text(max_size=200), _BOXES, st.floats(0, 1e6))
def test_a_result_survives_its_way_through_a_part(text: str, boxes: list[Box], seconds: float) -> None:
    figures = tuple(f"images/{number}.jpg" for number, _ in enumerate(figures_of(boxes, "")))
    result = done(5, "plain " + text.replace("<|", ""), boxes=tuple(boxes), figures=figures, seconds=round(seconds, 3))
    assert PageResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert PageResult.from_json(FAILED.to_json()) == FAILED


@pytest.mark.parametrize("entry", [{}, {"state": "done"}, {"state": "failed", "page": 1}, []])
def test_what_is_no_result_is_refused(entry: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        PageResult.from_json(entry)


@pytest.mark.parametrize("box", [(0, 0, 30, 20), (10, 5, 10, 5), (30, 20, 30, 20), (29, 19, 30, 20)])
def test_every_figure_has_at_least_a_pixel(box: tuple[int, int, int, int]) -> None:
    page = Image.new("RGB", (30, 20))
    picture = cut_out(page, Box("image", "", box))
    assert picture.width >= 1
    assert picture.height >= 1


def test_common_labels_have_colours_of_their_own() -> None:
    labels = ["title", "sub_title", "text", "image", "image_caption", "table", "equation"]
    page = Image.new("RGB", (90, 90), "white")
    colours = {overlay(page, [Box(label, "", (10, 20, 80, 80))]).getpixel((79, 50)) for label in labels}
    assert len(colours) == len(labels)


def test_the_overlay_draws_each_box_and_leaves_the_page_as_it_was() -> None:
    page = Image.new("RGB", (300, 200), "white")
    drawn = overlay(page, [Box("text", "", (50, 60, 200, 150)), Box("名前" * 100, "", (300, 200, 300, 200))])
    assert page.getcolors() == [(60_000, (255, 255, 255))]
    assert drawn.size == page.size
    assert drawn.getpixel((199, 120)) != (255, 255, 255)
    assert drawn.getpixel((125, 120)) == (255, 255, 255)
