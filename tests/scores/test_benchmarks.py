"""Published benchmarks: their rules, on small copies of the same layout, and against what their own programs count.

``omnidocbench.json`` has generated pages with the scores that the published evaluation gave them: its authors' package
omnidocbench 0.1.0, in an environment of its own, with its way to leave out the first block of the order mended.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.command import main as program
from server.scores import olmocr_bench, omnidocbench

PUBLISHED = json.loads((Path(__file__).parent / "omnidocbench.json").read_text(encoding="utf-8"))
_CATEGORIES = {"text": "text_block", "equation": "equation_isolated"}
_FIELDS = {"table": "html", "equation_isolated": "latex"}


def annotated(blocks: list[list[str]], image: str = "page.jpg") -> dict[str, Any]:
    parts = []
    for number, (kind, content) in enumerate(blocks):
        category = _CATEGORIES.get(kind, kind)
        order = None if kind == "footer" else number + 1
        part = {"anno_id": number, "category_type": category, "order": order, "ignore": False}
        parts.append({**part, _FIELDS.get(category, "text"): content})
    return {"layout_dets": parts, "page_info": {"image_path": image}, "extra": {"relation": []}}


def truth_of(folder: Path, *pages: dict[str, Any]) -> list[omnidocbench.Truth]:
    (folder / omnidocbench.ANNOTATIONS).write_text(json.dumps(list(pages)))
    return omnidocbench.load_truth(folder)


@pytest.mark.parametrize("page", PUBLISHED)
def test_a_page_has_the_scores_that_the_published_program_gives_it(tmp_path: Path, page: dict[str, Any]) -> None:
    (truth,) = truth_of(tmp_path, annotated(page["blocks"]))
    score = omnidocbench.score_page(truth, page["read"])
    ours = {
        "text": score.text, "formula": score.formula, "order": score.order,
        "teds": [table.teds for table in score.tables], "structure": [table.structure for table in score.tables],
    }  # fmt: skip
    for name, value in page["scores"].items():
        assert ours[name] == (value if value is None else pytest.approx(value)), name


def test_a_paragraph_that_was_cut_by_a_column_is_one(tmp_path: Path) -> None:
    page = annotated([["text", "a paragraph that goes"], ["title", "Head"], ["text", "on over there"]])
    page["extra"]["relation"] = [{"source_anno_id": 0, "target_anno_id": 2, "relation_type": "truncated"}]
    (truth,) = truth_of(tmp_path, page)
    assert [text for _, text, _ in truth.blocks] == ["a paragraph that goeson over there", "Head"]
    assert omnidocbench.score_page(truth, "a paragraph that goes on over there\n\n# Head").text == 0.0


def test_what_is_to_be_ignored_is(tmp_path: Path) -> None:
    page = annotated([["text", "kept"], ["text", "watermark"], ["abandon", "noise"], ["figure", ""]])
    page["layout_dets"][1]["ignore"] = True
    (truth,) = truth_of(tmp_path, page)
    assert [text for _, text, _ in truth.blocks] == ["kept"]


@pytest.mark.parametrize("content", ["{", "[{}]", '[{"layout_dets": 3, "page_info": {}}]'])
def test_annotations_of_another_layout_are_told(tmp_path: Path, content: str, capsys: Any) -> None:
    (tmp_path / omnidocbench.ANNOTATIONS).write_text(content)
    assert evaluated("omnidocbench", tmp_path, "--predictions", str(tmp_path)) == 1
    assert "not laid out as OmniDocBench" in capsys.readouterr().err


def evaluated(dataset: str, folder: Path, *flags: str) -> int:
    return program.main(["eval", "--dataset", dataset, str(folder), *flags])


def small_omnidocbench(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    pages = [annotated([["text", f"page {n}"]], f"images/p{n}.jpg") for n in (1, 2)]
    (folder / omnidocbench.ANNOTATIONS).write_text(json.dumps(pages))
    for n in (1, 2):
        Image.new("RGB", (40, 30), (n, n, n)).save(folder / "images" / f"p{n}.jpg", quality=100)


def test_results_that_are_there_already_are_scored(tmp_path: Path, capsys: Any) -> None:
    small_omnidocbench(tmp_path / "data")
    (tmp_path / "read").mkdir()
    (tmp_path / "read" / "p1.md").write_text("page 1")
    assert evaluated("omnidocbench", tmp_path / "data", "--predictions", str(tmp_path / "read"), "--json") == 0
    out, err = capsys.readouterr()
    scores = json.loads(out)
    assert scores["pages"]["p1.jpg"]["text"] == 0.0
    assert scores["pages"]["p2.jpg"]["text"] == 1.0  # as an empty page
    assert scores["summary"]["text_edit_distance"] == 0.5
    assert "p2.jpg was not read" in err


def small_olmocr_bench(folder: Path) -> None:
    data = folder / "bench_data"
    (data / "pdfs" / "old").mkdir(parents=True)
    for name in ("old/a.pdf", "b.pdf"):
        Image.new("RGB", (40, 30), "white").save(data / "pdfs" / name)
    common = {"page": 1, "max_diffs": 1}
    tests = [
        {"pdf": "old/a.pdf", "id": "a1", "type": "present", "text": "hello world", **common},
        {"pdf": "old/a.pdf", "id": "a2", "type": "absent", "text": "page 7 of 9", **common},
        {"pdf": "old/a.pdf", "id": "a3", "type": "order", "before": "hello", "after": "goodbye", **common},
        {"pdf": "b.pdf", "id": "b1", "type": "table", "cell": "12", "left": "total", **common},
    ]
    (data / "text.jsonl").write_text("".join(json.dumps(test) + "\n" for test in tests[:3]))
    (data / "table.jsonl").write_text(json.dumps(tests[3]) + "\n")


def test_olmocr_bench_is_scored_by_its_own_package(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("olmocr.bench.tests", reason="pip install 'olmocr[bench]' brings the benchmark's own rules")
    small_olmocr_bench(tmp_path / "data")
    read = tmp_path / "read"
    (read / "old").mkdir(parents=True)
    (read / "old" / "a.md").write_text("helo world\n\nand goodbye\n\npage 7 of 9")
    (read / "b.md").write_text("<table><tr><td>total</td><td>12</td></tr></table>")
    assert evaluated("olmocr-bench", tmp_path / "data", "--predictions", str(read), "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    groups = scores["summary"]["groups"]
    assert groups == {"baseline": 100.0, "table.jsonl": 100.0, "text.jsonl": pytest.approx(66.67)}
    assert scores["failed"] == ["a2"]
    assert scores["summary"]["score"] == pytest.approx(88.89)


def test_olmocr_bench_needs_its_package_and_says_so(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    small_olmocr_bench(tmp_path / "data")
    monkeypatch.setattr(olmocr_bench, "find_spec", lambda name: None)
    assert evaluated("olmocr-bench", tmp_path / "data", "--predictions", str(tmp_path)) == 1
    assert "pip install 'olmocr[bench]'" in capsys.readouterr().err


def test_a_model_reads_the_benchmark_first(tmp_path: Path, capsys: Any) -> None:
    small_omnidocbench(tmp_path / "data")
    out = tmp_path / "out"
    flags = ["-o", str(out), "--json", "--read", "--model tiny-ocr --device cpu --quiet"]
    assert evaluated("omnidocbench", tmp_path / "data", *flags) == 0
    scores = json.loads(capsys.readouterr().out)
    assert sorted(file.name for file in (out / "pages").glob("*.md")) == ["p1.md", "p2.md"]
    assert json.loads((out / "scores.json").read_text()) == scores
    assert scores["summary"]["pages"] == 2


def test_a_wrong_command_line_is_told(tmp_path: Path, capsys: Any) -> None:
    assert evaluated("omnidocbench", tmp_path) == 2
    assert "-o" in capsys.readouterr().err
    assert evaluated("omnidocbench", tmp_path, "-o", str(tmp_path / "out")) == 1
    assert "no copy of OmniDocBench" in capsys.readouterr().err
