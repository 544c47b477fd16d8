"""JSON and JSON lines are what their published schema says, whoever read the pages and however that went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.blocks import KINDS, Block
from models.grounding import Box
from runtime.confidence import Confidence
from server.writers import SCHEMA_VERSION, PageResult
from tests.command.conftest import Program, page_of
from tests.pdfs import scanned_pdf
from tests.writers.schema import FILE, validator

FIGURE = "<|ref|>image<|/ref|><|det|>[[0, 0, 500, 500]]<|/det|>\n<|ref|>text<|/ref|><|det|>[[0, 600, 9, 9]]<|/det|>\nAn"

PAGES = [
    PageResult(1, "done", width=3, height=4, finish_detail="eos"),
    PageResult(
        2, "done", width=3, height=4, text="x", finish_detail="loop", timings={"decode": 0.5}, seconds=1.25,
        confidence=Confidence(0.5, 0.25), doubtful=True, warnings=("a font is missing",), truncated=True,
    ),
    PageResult(
        5, "done", width=3, height=4, finish_detail="eos", figures=("images/a-p5-0.jpg",),
        boxes=(Box("image", "", (0, 1, 2, 3)),),
        blocks=(
            Block("title", "A", (0, 0, 3, 1), "doc_title", 0.5, 1),
            Block("figure", "", (0, 1, 2, 3), "image"),
            Block("text", ""),
        ),
    ),
    PageResult(
        6, "done", width=3, height=4, finish_detail="eos", rotated=90, boxes=(Box("text", "", (0, 1, 2, 4)),),
        blocks=(Block("text", "A", (0, 1, 2, 4)), Block("text", "")),
    ),
    PageResult(3, "failed", "busy", True, seconds=1.5),
    PageResult(4, "failed", "no page"),
]  # fmt: skip


@pytest.mark.parametrize("result", PAGES, ids=lambda result: str(result.page))
def test_a_page_survives_its_way_through_json_and_fits_the_schema(result: PageResult) -> None:
    entry = json.loads(json.dumps(result.to_json()))
    assert PageResult.from_json(entry) == result
    validator("page").validate(entry)


@pytest.mark.parametrize("result", PAGES, ids=lambda result: str(result.page))
def test_every_field_that_the_schema_asks_for_is_needed(result: PageResult) -> None:
    for name in result.to_json().keys() - {"confidence", "doubtful", "truncated", "transient", "rotated"}:
        entry = result.to_json()
        del entry[name]
        assert not validator("page").is_valid(entry), name


@pytest.mark.parametrize(
    ("name", "value"),
    [("page", 0), ("width", 0), ("boxes", {}), ("finish_detail", "tired"), ("warnings", "x"), ("seconds", -1)],
)
def test_the_schema_refuses_what_is_wrong(name: str, value: Any) -> None:
    assert not validator("page").is_valid({**PAGES[0].to_json(), name: value})


def test_what_the_program_writes_fits_the_schema(ocr: Program, tmp_path: Path) -> None:
    ocr.script = lambda number, page: ValueError("broken") if number == 2 else FIGURE if number else ""
    (tmp_path / "a.pdf").write_bytes(scanned_pdf([page_of(number) for number in range(3)]))
    assert ocr("read", "a.pdf", "-o", "out", "--format", "json,jsonl") == 1
    document = json.loads((tmp_path / "out/a.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "out/a.jsonl").read_text().splitlines()]
    validator("document").validate(document)
    assert document["schema_version"] == SCHEMA_VERSION
    assert [page["state"] for page in document["pages"]] == ["done", "done", "failed"]
    second = document["pages"][1]
    assert second["boxes"][0]["image"] == "images/a-p2-0.jpg"
    assert second["blocks"][0] == {"kind": "figure", "text": "", "box": [0, 0, 30, 20], "label": "image"} | {
        "image": "images/a-p2-0.jpg"
    }
    assert second["blocks"][1]["text"] == "An"
    for line, page in zip(lines, document["pages"], strict=True):
        validator("line").validate(line)
        assert {key: value for key, value in line.items() if key in page} == page
        assert {key: line[key] for key in line.keys() - page.keys()} == {
            key: document[key] for key in ("schema_version", "document", "page_count", "model")
        }


def test_json_lines_come_page_by_page_on_standard_output(ocr: Program) -> None:
    page_of(7).save("a.png")
    assert ocr("read", "a.png", "--format", "jsonl") == 0
    assert [json.loads(line)["markdown"] for line in ocr.out.splitlines()] == ["page 7"]


def test_the_schema_knows_every_kind_of_block() -> None:
    schema = json.loads(FILE.read_text())
    assert tuple(schema["$defs"]["block"]["properties"]["kind"]["enum"]) == KINDS


def test_what_is_no_kind_of_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="'poem' is no kind of a block"):
        PageResult.from_json(PAGES[0].to_json() | {"blocks": [{"kind": "poem", "text": "", "box": None}]})


def test_the_schema_is_of_the_version_that_is_written() -> None:
    pattern = json.loads(FILE.read_text())["$defs"]["schema_version"]["pattern"]
    assert pattern.removeprefix("^").partition("\\")[0] == SCHEMA_VERSION.partition(".")[0]
