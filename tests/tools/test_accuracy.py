"""The table of character error rates by dtype."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

pytest.importorskip("torch")

from tools.accuracy import Found, PageQuestion, asked_about, main, rows, scores, well_placed, without_boxes
from tools.demo_page import PAGE_TEXT, demo_page
from tools.peers import installed, plain, rows_of
from tools.train_tiny.evaluate import Score
from tools.train_tiny.held_out import held_out_pages
from tools.train_tiny.tasks import PROMPTS


def test_each_dtype_is_held_against_the_first_in_points_of_all_pages() -> None:
    def found(errors: int) -> Found:
        categories = {"clean": Score(2, 1000, errors, 0), "blank": Score(2, 0, 1, 1), "all": Score(2, 1000, errors, 0)}
        return Found(categories, 0.126)

    table = list(rows({"f32": found(50), "q8": found(54), "q4+q8": found(59), "f16": found(49)}))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0] == ["dtype", "clean", "blank", "all", "points against f32", "bar", "s a page"]
    assert cells[2] == ["f32", "5.00%", "1 read", "5.00%", "+0.00", "", "0.13"]
    assert cells[3] == ["q8", "5.40%", "1 read", "5.40%", "+0.40", "<= 0.3 MISSED", "0.13"]
    assert cells[4] == ["q4+q8", "5.90%", "1 read", "5.90%", "+0.90", "<= 1.0 met", "0.13"]
    assert cells[5] == ["f16", "4.90%", "1 read", "4.90%", "-0.10", "", "0.13"]


def test_readings_are_scored_by_category_after_both_sides_are_made_alike() -> None:
    def page(text: str) -> PageQuestion:
        return PageQuestion(Image.new("RGB", (8, 8)), None, text)

    pages = {"clean": [page("“ab” – c"), page("xyz")], "blank": [page("")]}
    reading = {id(pages["clean"][0]): '"ab"  -  c\n\n', id(pages["clean"][1]): "xyy"}
    found = scores(lambda one: reading.get(id(one), ""), pages, plain).scores
    assert found["clean"] == Score(2, 11, 1, 1)
    assert found["blank"] == Score(1, 0, 0, 1)
    assert found["all"] == found["clean"]


def test_boxes_count_where_label_and_every_edge_agree_within_two_percent_of_the_page() -> None:
    def tag(label: str, *edges: int) -> str:
        return f"<|ref|>{label}<|/ref|><|det|>[{list(edges)}]<|/det|>"

    truth = tag("text", 10, 10, 500, 50) + "a" + tag("text", 10, 60, 500, 90) + "b" + tag("title", 10, 100, 500, 150)
    read = tag("text", 25, 10, 500, 60) + "a" + tag("text", 10, 60, 530, 90) + "b" + tag("text", 10, 100, 500, 150)
    assert well_placed(truth, truth) == (3, 3)
    assert well_placed(read, truth) == (1, 3)
    assert without_boxes(truth) == "<|ref|>text<|/ref|>a<|ref|>text<|/ref|>b<|ref|>title<|/ref|>"


def test_a_task_is_asked_with_its_prompt_and_the_table_says_how_many_boxes_stand_right() -> None:
    pages = {"tables": [asked_about(page, "markdown") for page in held_out_pages("tables", 3)]}
    assert {page.prompt for page in pages["tables"]} == {PROMPTS["markdown"]}
    found = scores(lambda page: page.text.replace("title", "text"), pages, without_boxes)
    assert found.placed is not None
    assert 0 < found.placed < 1
    header, _, row = rows({"f32": found})
    assert header.endswith("| boxes within 2 % |")
    assert row.endswith(f"| {found.placed:.0%} |")


def test_pieces_that_stand_beside_each_other_are_one_line() -> None:
    def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
        return [[left, top], [right, top], [right, bottom], [left, bottom]]

    pieces = {"14.25": box(200, 41, 250, 61), "Thank you!": box(10, 80, 90, 100), "Total:": box(10, 40, 60, 60),
              "Paper": box(10, 10, 60, 30)}  # fmt: skip
    assert list(rows_of(list(pieces.values()), list(pieces))) == ["Paper", "Total: 14.25", "Thank you!"]


def test_a_category_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--categories", "clean,poems"])
    assert "no category poems; there are one_line, clean," in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("tesseract"), reason="tesseract is not installed (apt-get install tesseract-ocr)")
def test_tesseract_reads_the_demonstration_s_page_as_the_table_asks_it() -> None:
    (name,) = (name for name in installed() if name.startswith("tesseract"))
    assert plain(installed()[name](demo_page())) == PAGE_TEXT
