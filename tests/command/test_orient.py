"""``read --orient``: pages that lie are read upright; results and the run's manifest say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.turned import back, turned
from tests.command.conftest import Program
from tests.turning import text_page

PAGE = text_page()
PLACED = (
    "<|ref|>image<|/ref|><|det|>[[0, 0, 999, 499]]<|/det|>\n<|ref|>text<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>\nA"
)


def page_of(out: Path) -> dict[str, Any]:
    page: dict[str, Any] = json.loads((out / "a.json").read_text())["pages"][0]
    return page


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [
        line for line in map(json.loads, (out / "ocr-run.jsonl").read_text().splitlines()) if line["type"] == "page"
    ]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_lying_page_is_turned_and_said_to_have_been(ocr: Program, tmp_path: Path, degrees: int) -> None:
    sizes = []
    ocr.script = lambda number, page: sizes.append(page.size) or PLACED  # type: ignore[func-returns-value]
    turned(PAGE, back(degrees)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert ocr("read", tmp_path / "a.png", "-o", out, "--format", "json,hocr,pdf", "--orient", "auto") == 0
    assert sizes == [PAGE.size]
    page = page_of(out)
    assert (page["rotated"], page["width"], page["height"]) == (degrees, *turned(PAGE, degrees).size)
    upper = {90: (0, 0, 449, 700), 180: (0, 450, 700, 900), 270: (450, 0, 900, 700)}[degrees]  # half, as it came
    assert page["boxes"][0]["box"] == pytest.approx(upper, abs=2)
    assert lines_of(out)[0]["rotated"] == degrees
    assert "textangle" in (out / "a.hocr").read_text()


def test_what_was_turned_is_kept_by_resume_and_read_again_without_it(ocr: Program, tmp_path: Path) -> None:
    turned(PAGE, 180).save(tmp_path / "a.png")
    out = tmp_path / "out"
    flags = ("read", tmp_path / "a.png", "-o", out, "--format", "json", "--resume")
    assert ocr(*flags, "--orient", "auto") == 0
    assert ocr(*flags, "--orient", "auto") == 0
    assert ocr.seen == []
    assert page_of(out)["rotated"] == 180
    assert ocr(*flags) == 0
    assert len(ocr.seen) == 1
    assert "rotated" not in page_of(out)


def test_an_upright_page_is_left_and_nothing_is_said(ocr: Program, tmp_path: Path) -> None:
    PAGE.save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert ocr("read", tmp_path / "a.png", "-o", out, "--format", "json", "--orient", "auto") == 0
    assert "rotated" not in page_of(out)
    assert "rotated" not in lines_of(out)[0]


def test_a_word_that_is_none_is_refused(ocr: Program, tmp_path: Path) -> None:
    PAGE.save(tmp_path / "a.png")
    assert ocr("read", tmp_path / "a.png", "--orient", "sideways") == 2
    assert "orient is 'sideways'; it must be off or auto" in ocr.err
