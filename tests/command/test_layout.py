"""``ocr-onnx layout``: boxes of pages as JSON and drawn, by a detector that finds what the test says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from models.layout.labels import LABELS
from tests.command.conftest import Program
from tests.detectors import write_detector
from tests.pdfs import text_pdf
from tests.writers.schema import validator

FOUND = [
    ("doc_title", (0.1, 0.05, 0.9, 0.1), 0.9),
    ("text", (0.1, 0.15, 0.45, 0.9), 0.55),
    ("table", (0.55, 0.15, 0.9, 0.5), 0.35),
]
SIZE = (400, 800)
BOXES = [[40, 40, 360, 80], [40, 120, 180, 720], [220, 120, 360, 400]]


@pytest.fixture
def detector(ocr: Program, tmp_path: Path) -> Path:
    """In the program's cache, as pp-doclayout-v3."""
    return write_detector(tmp_path / "cache/deepseek-ocr/models/pp-doclayout-v3/onnx/f32", FOUND)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    file = tmp_path / "page.png"
    Image.new("RGB", SIZE, "white").save(file)
    return file


def test_boxes_go_to_standard_output_as_json(ocr: Program, detector: Path, page: Path) -> None:
    assert ocr("layout", page) == 0
    document = json.loads(ocr.out)
    assert document["model"] == "pp-doclayout-v3"
    assert document["settings"]["threshold"] == 0.3
    (found,) = document["pages"]
    assert (found["width"], found["height"]) == SIZE
    assert [block["label"] for block in found["blocks"]] == ["doc_title", "text", "table"]
    assert [block["kind"] for block in found["blocks"]] == ["title", "text", "table"]
    assert [block["box"] for block in found["blocks"]] == BOXES
    assert [block["confidence"] for block in found["blocks"]] == pytest.approx([0.9, 0.55, 0.35], abs=1e-3)
    assert [(box["label"], box["box"]) for box in found["boxes"]] == list(
        zip(["doc_title", "text", "table"], BOXES, strict=True)
    )
    assert found["timings"]["layout"] > 0
    validator("document").validate(document)


def test_pages_of_documents_are_written_to_a_folder_with_their_boxes_drawn(
    ocr: Program, detector: Path, page: Path, tmp_path: Path
) -> None:
    pdf = tmp_path / "three.pdf"
    pdf.write_bytes(text_pdf(["one", "two", "three"]))
    flags = ("-o", "out", "--overlay", "--pages", "1-2", "--dpi", "72", "--format", "json,jsonl")
    assert ocr("layout", pdf, page, *flags) == 0
    assert len(json.loads((tmp_path / "out/page.json").read_text())["pages"]) == 1  # it has no second page
    document = json.loads((tmp_path / "out/three.json").read_text())
    assert [one["page"] for one in document["pages"]] == [1, 2]
    assert len((tmp_path / "out/three.jsonl").read_text().splitlines()) >= 2
    assert {file.name for file in (tmp_path / "out/overlays").iterdir()} == {
        "page-p1.jpg", "three-p1.jpg", "three-p2.jpg",
    }  # fmt: skip
    with Image.open(tmp_path / "out/overlays/three-p1.jpg") as drawn:
        assert drawn.convert("L").getextrema()[0] < 200  # outlined
    before = (tmp_path / "out/three.json").stat().st_mtime_ns
    assert ocr("layout", pdf, "-o", "out", "--overlay", "--pages", "1-2", "--dpi", "72", "--format", "json,jsonl",
               "--resume") == 0  # fmt: skip
    assert (tmp_path / "out/three.json").stat().st_mtime_ns == before


def test_the_least_score_may_be_said(ocr: Program, detector: Path, page: Path) -> None:
    assert ocr("layout", page, "--min-score", "0.5") == 0
    assert [block["label"] for block in json.loads(ocr.out)["pages"][0]["blocks"]] == ["doc_title", "text"]


def test_a_page_without_a_box_has_none(ocr: Program, page: Path, tmp_path: Path) -> None:
    folder = write_detector(tmp_path / "empty", [])
    assert ocr("layout", page, "--detector", folder, "-o", "page.json") == 0
    (found,) = json.loads((tmp_path / "page.json").read_text())["pages"]
    assert found["blocks"] == found["boxes"] == []


def test_three_hundred_boxes_are_written(ocr: Program, page: Path, tmp_path: Path) -> None:
    many = [
        (LABELS[22], (0.05 * x, 0.06 * y, 0.05 * x + 0.04, 0.06 * y + 0.05), 0.9) for y in range(15) for x in range(20)
    ]
    folder = write_detector(tmp_path / "many", many)
    assert ocr("layout", page, "--detector", folder) == 0
    assert len(json.loads(ocr.out)["pages"][0]["blocks"]) == 300


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (
            ["--detector", "v2"],
            1,
            "pp-doclayout-v2 is not exported here; make it with: ocr-onnx export pp-doclayout-v2",
        ),
        (["--detector", "v9"], 2, "layout detector 'v9' is unknown"),
        (["--detector", "./nothing"], 1, "nothing/manifest.json is missing"),
        (["--format", "md"], 2, "expected json, jsonl or both"),
        (["-o", "page.md"], 2, "boxes are written as json or jsonl, and -o asks for md"),
        (["--min-score", "2"], 2, "expected a number from 0 to 1, found '2'"),
        (["--overlay"], 2, "--overlay needs an output folder"),
        (["--task", "ocr"], 2, "unrecognized arguments"),
    ],
)
def test_wrong_words_are_errors(
    ocr: Program, detector: Path, page: Path, arguments: list[str], code: int, expected: str
) -> None:
    assert ocr("layout", page, *arguments) == code
    assert expected in ocr.err


def test_a_page_that_cannot_be_opened_fails_alone(ocr: Program, detector: Path, page: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert ocr("layout", tmp_path / "bad.png", page, "-o", "out") == 1
    assert "bad.png" in ocr.err
    assert json.loads((tmp_path / "out/page.json").read_text())["pages"][0]["state"] == "done"
