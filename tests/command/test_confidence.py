"""``--min-confidence``: a person can tell a bad page from a good one, in every kind of result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runtime.confidence import Confidence
from server.command.progress import PageWork
from server.command.readers import Reading
from tests.command.conftest import Program, ScriptedReader, page_of
from tests.pdfs import scanned_pdf

SURE = {0: Confidence(0.99, 0.7), 1: Confidence(0.55, 0.1), 2: None}


@pytest.fixture
def doubting(ocr: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The second of three pages is read badly; of the third nothing is known."""
    plain = ScriptedReader.read

    def read(self: ScriptedReader, page: Image.Image, work: PageWork | None = None) -> Reading:
        return replace(plain(self, page, work), confidence=SURE[page.getpixel((0, 0))[0]])  # type: ignore[index]

    monkeypatch.setattr(ScriptedReader, "read", read)
    return ocr


def document(tmp_path: Path) -> Path:
    path = tmp_path / "a.pdf"
    path.write_bytes(scanned_pdf([page_of(number) for number in range(3)]))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pages_below_the_bound_are_marked_in_every_result(doubting: Program, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert doubting("read", document(tmp_path), "-o", out, "--format", "md,json", "--min-confidence", "0.8") == 0
    pages = json.loads((out / "a.json").read_text())["pages"]
    assert [page.get("confidence") for page in pages] == [
        {"mean": 0.99, "lowest": 0.7}, {"mean": 0.55, "lowest": 0.1}, None,
    ]  # fmt: skip
    assert [page.get("doubtful", False) for page in pages] == [False, True, False]
    noted = {line["page"]: line for line in lines(out / "ocr-run.jsonl") if line.get("page")}
    assert [noted[page].get("doubtful", False) for page in (1, 2, 3)] == [False, True, False]
    assert noted[1]["confidence"] == {"mean": 0.99, "lowest": 0.7}
    assert (out / "a.md").read_text().count("is doubtful: confidence 0.550") == 1
    assert "doubtful: a.pdf, page 2: confidence 0.550" in doubting.err.replace(f"{tmp_path}/", "")


def test_without_a_bound_nothing_is_marked_and_the_figures_are_there(doubting: Program, tmp_path: Path) -> None:
    assert doubting("read", document(tmp_path), "--format", "json") == 0
    pages = json.loads(doubting.out)["pages"]
    assert pages[1]["confidence"]["mean"] == 0.55
    assert not any("doubtful" in page for page in pages)
    assert doubting("read", document(tmp_path), "--min-confidence", "0.8") == 0
    assert doubting.out.count("doubtful") == 1


def test_a_run_that_goes_on_keeps_what_the_one_before_knew(doubting: Program, tmp_path: Path) -> None:
    out = tmp_path / "out"
    doubting.script = lambda number, page: RuntimeError("broken") if number == 2 else f"page {number}"
    asked = ("read", document(tmp_path), "-o", out, "--format", "json", "--min-confidence", "0.8")
    assert doubting(*asked) == 1
    doubting.script = lambda number, page: f"page {number}"
    assert doubting(*asked, "--retry-failed") == 0
    pages = json.loads((out / "a.json").read_text())["pages"]
    assert [page.get("doubtful", False) for page in pages] == [False, True, False]
    assert pages[0]["confidence"] == {"mean": 0.99, "lowest": 0.7}


@pytest.mark.parametrize("bound", ["1.5", "-0.1", "high", "nan"])
def test_a_bound_that_is_no_probability_is_refused(doubting: Program, tmp_path: Path, bound: str) -> None:
    assert doubting("read", document(tmp_path), f"--min-confidence={bound}") == 2
    assert "expected a number from 0 to 1" in doubting.err
