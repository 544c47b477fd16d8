"""Grounding output is read into boxes on the page, whatever the model wrote."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from models.grounding import Box, parse_boxes, to_markdown
from models.locations import parse_locations

TAGS = ["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>"]
pieces = st.sampled_from(
    [*TAGS, "image", "[", "[[", "]", "]]", ",", "1", "-7", "9" * 400, "1e9", "NaN", "inf", " ", "\n", "٣", "1_0"]
)
malformed = st.lists(st.one_of(pieces, st.text(max_size=5)), max_size=60).map("".join)
corners = st.tuples(*[st.integers(0, 999)] * 4)
words = st.text(st.characters(exclude_characters="<|>", exclude_categories=["Cs"]), min_size=1, max_size=9).map(
    str.strip
)


def write(label: str, places: list[tuple[int, int, int, int]], text: str) -> str:
    return f"<|ref|>{label}<|/ref|><|det|>{[list(place) for place in places]}<|/det|>\n{text}\n"


def reference(label: str) -> str:
    return f"<|ref|>{label}<|/ref|><|det|>[[0, 0, 9, 9]]<|/det|>"


def test_a_page_of_the_published_form_becomes_labels_texts_and_pixels() -> None:
    answer = write("title", [(0, 0, 999, 100)], "# Report") + write("image", [(100, 200, 300, 400)], "")
    assert parse_boxes(answer, 1998, 999) == [
        Box("title", "# Report", (0, 0, 1998, 100)),
        Box("image", "", (200, 200, 600, 400)),
    ]
    assert to_markdown(answer, "images/{}.jpg".format) == "# Report\n![](images/0.jpg)"


@given(st.lists(st.tuples(words, st.lists(corners, min_size=1, max_size=4), words), max_size=8))
def test_constructed_outputs_round_trip(written: list[tuple[str, list[tuple[int, int, int, int]], str]]) -> None:
    expected = [
        Box(label, text, (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))
        for label, places, text in written
        for x0, y0, x1, y1 in places
    ]
    answer = "".join(write(label, places, text) for label, places, text in written)
    assert parse_boxes(answer, 999, 999) == expected


@given(malformed, st.integers(1, 5000), st.integers(1, 5000))
def test_boxes_of_any_text_stay_on_the_page(text: str, width: int, height: int) -> None:
    for box in parse_boxes(text, width, height):
        x0, y0, x1, y1 = box.box
        assert 0 <= x0 <= x1 <= width
        assert 0 <= y0 <= y1 <= height


@given(malformed)
def test_every_figure_in_the_markdown_has_its_box(text: str) -> None:
    links: list[int] = []
    to_markdown(text, lambda number: links.append(number) or "")  # type: ignore[func-returns-value]
    assert links == list(range(sum(box.label == "image" for box in parse_boxes(text, 100, 100))))


def test_huge_negative_and_swapped_coordinates_are_moved_onto_the_page() -> None:
    place = "9" * 400
    answer = f"<|ref|>a<|/ref|><|det|>[[{place}, -5, 10, 20], [1, NaN, 3, 4], [1, 2, 3], [[5, 6, 7, 8]]]<|/det|>"
    assert [box.box for box in parse_boxes(answer, 999, 999)] == [(10, 0, 999, 20), (5, 6, 7, 8)]


def test_unclosed_tags_are_left_as_they_are() -> None:
    for text in ("<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]]", "<|ref|>a", "<|ref|>a<|/ref|> b <|det|>[[1,2,3,4]]<|/det|>"):
        assert parse_boxes(text, 100, 100) == []
        assert to_markdown(text, str) == text


def test_the_time_is_linear_in_the_text() -> None:
    started = time.process_time()
    for part in (*TAGS, "<|ref|>a<|/ref|><|det|>", "<|ref|>a<|/ref|><|det|>" + "[" * 20 + "<|/det|>"):
        parse_boxes(part * 20_000, 100, 100)
    parse_boxes("<|ref|>a<|/ref|><|det|>" + "[" * 500_000 + "<|/det|>", 100, 100)
    assert time.process_time() - started < 10  # quadratic time would be minutes


def test_a_text_without_references_has_no_boxes_and_stays_as_it_is() -> None:
    assert parse_boxes("plain text", 100, 100) == []
    assert parse_boxes("", 100, 100) == []
    assert to_markdown("plain text") == "plain text"


def test_a_line_of_references_alone_goes_with_them() -> None:
    place = reference("text")
    assert to_markdown(f"{place}\n# One\n\n{place}{place}\nTwo\n\n{place}\n\n  Three") == "# One\n\nTwo\n\n\n  Three"
    assert to_markdown(f"before {place}\nbehind") == "before \nbehind"
    assert to_markdown(f"one\n{place}two") == "one\ntwo"


def test_labels_are_the_text_where_an_answer_is_nothing_but_references() -> None:
    """As DeepSeek-OCR answers "OCR this image" and "Locate"."""
    answer = f"{reference('The perils')}\n{reference('image')}\n{reference('of coding')}{reference('days')}"
    assert to_markdown(answer) == "The perils\nof coding\ndays"
    assert to_markdown(answer, lambda number: "x.jpg") == "The perils\n![](x.jpg)\n\nof coding\ndays"
    assert to_markdown(f"{reference('days')}\n<|ref|>cut<|/ref|><|det|>[[1") == "days\n<|ref|>cut<|/ref|><|det|>[[1"
    assert to_markdown(f"{reference('title')}\n# Heading\n{reference('text')}\n") == "# Heading"


def test_figures_are_left_out_where_there_are_no_pictures() -> None:
    text = "<|ref|>image<|/ref|><|det|>[[0, 0, 9, 9]]<|/det|>\nA caption"
    assert to_markdown(text) == "A caption"
    assert to_markdown(text, lambda number: "x.jpg") == "![](x.jpg)\n\nA caption"


def test_boxes_with_their_label_inside_the_tag_are_read_beside_the_first_form() -> None:
    """Unlimited-OCR's own prompts give these; DeepSeek-OCR's prompts give it the form with references."""
    answer = (
        "<|det|>title [0, 0, 999, 100]<|/det|># Report\n"
        "<|det|>image [100, 200, 300, 400]<|/det|>\n"
        "<|ref|>text<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>\nWords <PAGE>of the next page"
    )
    assert parse_boxes(answer, 1998, 999) == [
        Box("title", "# Report", (0, 0, 1998, 100)),
        Box("image", "", (200, 200, 600, 400)),
        Box("text", "Words", (0, 500, 1998, 999)),
    ]
    assert to_markdown(answer, "images/{}.jpg".format) == "# Report\n![](images/0.jpg)\n\nWords <PAGE>of the next page"


def test_a_det_tag_without_label_or_with_other_than_four_numbers_is_text() -> None:
    for inside in ("[1, 2, 3, 4]", "text [1, 2, 3]", "text", "text [a, b, c, d]", "te[xt [1, 2, 3, 4]"):
        answer = f"<|det|>{inside}<|/det|>left alone"
        assert parse_boxes(answer, 100, 100) == []
        assert to_markdown(answer) == answer


def test_spotted_lines_stand_in_the_box_around_their_four_corners() -> None:
    quad = "".join(f"<|LOC_{n}|>" for n in (100, 200, 500, 180, 510, 260, 105, 280))
    answer = f"First line{quad}\nsecond{quad.removesuffix('<|LOC_280|>')}\nthird{quad.replace('510', '1001')}"
    assert parse_locations(answer, 2000, 1000) == [
        Box("text", "First line", (200, 180, 1020, 280)),
        Box("text", "second\nthird", (200, 180, 2000, 280)),
    ]
    assert to_markdown(answer) == "First line\nsecond\nthird"
