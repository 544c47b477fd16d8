"""``ocr-onnx read`` with a scripted reader: what is read again after a run that was ended, killed or failed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from server.command.command_errors import CommandFailed
from server.command.folder import OutputFolder
from server.command.stores import Disk
from tests.command.conftest import Program, ScriptedReader, failing
from tests.command.material import files, pdf, png, stop_at


def test_ctrl_c_keeps_finished_pages_and_resume_goes_on_from_them(ocr: Program, tmp_path: Path) -> None:
    pdf(tmp_path / "in/a.pdf", 0, 1)
    pdf(tmp_path / "in/b.pdf", 2, 3, 4, 5)
    stop_at(ocr, 4)
    assert ocr("read", "in", "-o", "out", "--format", "txt", "--jobs", "1") == 130
    assert "interrupted" in ocr.err
    out = tmp_path / "out"
    assert (out / "a.txt").read_text() == "page 0\n\fpage 1\n"
    assert not (out / "b.txt").exists()
    ocr.script = lambda number, page: f"again {number}"
    assert ocr("read", "in", "-o", "out", "--format", "txt", "--resume") == 0
    assert ocr.seen == [4, 5]
    assert (out / "b.txt").read_text() == "page 2\n\fpage 3\n\fagain 4\n\fagain 5\n"
    assert files(out) == {"a.txt", "b.txt", "ocr-run.jsonl"}
    assert ocr("read", "in", "-o", "out", "--format", "txt", "--resume") == 0
    assert not ocr.readers[-1].started  # nothing to read needs no model
    assert ocr.seen == []


def test_ctrl_c_leaves_whole_json_on_standard_output(ocr: Program, tmp_path: Path) -> None:
    document = pdf(tmp_path / "a.pdf", 0, 1, 2, 3)
    stop_at(ocr, 2)
    assert ocr("read", document, "--format", "json", "--jobs", "1") == 130
    assert [page["text"] for page in json.loads(ocr.out)["pages"]] == ["page 0", "page 1"]


def test_without_resume_everything_is_read_again(ocr: Program, tmp_path: Path) -> None:
    document = pdf(tmp_path / "a.pdf", 1, 2, 3)
    stop_at(ocr, 2)
    assert ocr("read", document, "-o", "out", "--jobs", "1") == 130
    ocr.script = lambda number, page: "x"
    assert ocr("read", document, "-o", "out") == 0
    assert ocr.seen == [1, 2, 3]


@pytest.mark.parametrize(
    "change",
    ["nothing", "document", "dpi", "setting", "prompt", "task", "raw", "model", "overlay", "result gone", "pages"],
)
def test_what_has_changed_is_read_again(ocr: Program, tmp_path: Path, change: str) -> None:
    document = pdf(tmp_path / "a.pdf", 1, 2, 3)
    assert ocr("read", document, "-o", "out", "--prompt", "Read.") == 0
    more = {
        "dpi": ["--dpi", "100"], "setting": ["--max-new-tokens", "9"], "overlay": ["--overlay"],
        "pages": ["--pages", "2"], "raw": ["--raw"],
    }.get(change, [])  # fmt: skip
    prompt = {"prompt": ["--prompt", "Read it."], "task": ["--task", "ocr"]}.get(change, ["--prompt", "Read."])
    if change == "document":
        pdf(document, 1, 2, 3, 4)
    if change == "model":
        ocr.model = "other"
    if change == "result gone":
        (tmp_path / "out/a.md").unlink()
    assert ocr("read", document, "-o", "out", "--resume", *prompt, *more) == 0
    pages = {"nothing": [], "document": [1, 2, 3, 4], "pages": [2]}.get(change, [1, 2, 3])
    assert ocr.seen == pages


def test_other_pages_of_a_part_that_is_there_are_not_read_twice(ocr: Program, tmp_path: Path) -> None:
    document = pdf(tmp_path / "a.pdf", 1, 2, 3, 4)
    stop_at(ocr, 3)
    assert ocr("read", document, "-o", "out", "--jobs", "1", "--format", "txt") == 130
    ocr.script = lambda number, page: f"page {number}"
    assert ocr("read", document, "-o", "out", "--resume", "--pages", "2-3", "--format", "txt") == 0
    assert ocr.seen == [3]
    assert (tmp_path / "out/a.txt").read_text() == "page 2\n\fpage 3\n"


def test_retry_failed_reads_failures_only(ocr: Program, tmp_path: Path) -> None:
    pdf(tmp_path / "in/a.pdf", 1, 2, 3)
    pdf(tmp_path / "in/b.pdf", 4)
    ocr.script = failing(1, 2)
    assert ocr("read", "in", "-o", "out", "--format", "txt") == 1
    out = tmp_path / "out"
    assert (out / "a.txt").read_text() == "\f\fpage 3\n"
    assert ocr("read", "in", "-o", "out", "--format", "txt", "--resume") == 1  # they are still failures
    assert ocr.seen == []
    pdf(tmp_path / "in/new.pdf", 9)
    ocr.script = failing(2)
    assert ocr("read", "in", "-o", "out", "--format", "txt", "--retry-failed") == 1
    assert ocr.seen == [1, 2]
    assert (out / "a.txt").read_text() == "page 1\n\f\fpage 3\n"
    assert not (out / "new.txt").exists()
    ocr.script = failing()
    assert ocr("read", "in", "-o", "out", "--format", "txt", "--retry-failed", "--resume") == 0
    assert ocr.seen == [2, 9]
    assert (out / "a.txt").read_text() == "page 1\n\fpage 2\n\fpage 3\n"
    assert files(out) == {"a.txt", "b.txt", "new.txt", "ocr-run.jsonl"}


def test_a_document_that_could_not_be_opened_is_a_failure_to_retry(ocr: Program, tmp_path: Path) -> None:
    whole = pdf(tmp_path / "in/bad.pdf", 1, 2).read_bytes()
    (tmp_path / "in/bad.pdf").write_bytes(whole[:100])
    pdf(tmp_path / "in/good.pdf", 3)
    assert ocr("read", "in", "-o", "out") == 1
    assert ocr("read", "in", "-o", "out", "--retry-failed") == 1  # as broken as before
    (tmp_path / "in/bad.pdf").write_bytes(whole)
    pdf(tmp_path / "in/new.pdf", 4)
    assert ocr("read", "in", "-o", "out", "--retry-failed") == 1  # nobody asked for new.pdf
    assert ocr.seen == [1, 2]
    assert files(tmp_path / "out") == {"bad.md", "good.md", "ocr-run.jsonl"}
    assert ocr("read", "in/bad.pdf", "in/good.pdf", "-o", "out", "--retry-failed") == 0
    assert ocr.seen == []


def test_a_killed_run_is_gone_on_with_whatever_it_left(ocr: Program, tmp_path: Path) -> None:
    document = pdf(tmp_path / "a.pdf", *range(6))
    stop_at(ocr, 4)
    assert ocr("read", document, "-o", "out", "--jobs", "1", "--format", "txt") == 130
    out = tmp_path / "out"
    with (out / "ocr-run.jsonl").open("a") as manifest:
        manifest.write('{"type": "page", "docu')
    (out / ".ocr-parts/tmp").mkdir(exist_ok=True)
    (out / ".ocr-parts/tmp/half").write_text("half of a file")
    (part,) = out.glob(".ocr-parts/*/2.json")
    part.write_bytes(part.read_bytes()[:20])  # a power cut
    ocr.script = lambda number, page: f"page {number}"
    assert ocr("read", document, "-o", "out", "--resume", "--format", "txt") == 0
    assert ocr.seen == [1, 4, 5]
    assert (out / "a.txt").read_text().split() == [word for number in range(6) for word in ("page", str(number))]
    broken = [line for line in (out / "ocr-run.jsonl").read_text().splitlines() if not line.endswith("}")]
    assert broken == ['{"type": "page", "docu']
    assert files(out) == {"a.txt", "ocr-run.jsonl"}


def test_killed_between_the_last_page_and_its_publishing(ocr: Program, tmp_path: Path, monkeypatch: Any) -> None:
    document = pdf(tmp_path / "a.pdf", 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr("server.command.folder.OutputFolder.finish", lambda *_: None)
        assert ocr("read", document, "-o", "out", "--format", "txt") == 0
    assert ocr("read", document, "-o", "out", "--format", "txt", "--resume") == 0
    assert ocr.seen == []
    assert (tmp_path / "out/a.txt").read_text() == "page 1\n\fpage 2\n"


def test_killed_between_publishing_a_document_and_noting_it(ocr: Program, tmp_path: Path, monkeypatch: Any) -> None:
    class Killed(BaseException):
        pass

    note = OutputFolder.note

    def die(self: OutputFolder, kind: str, **fields: Any) -> None:
        if kind == "document":
            raise Killed
        note(self, kind, **fields)

    document = pdf(tmp_path / "a.pdf", 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "note", die)
        with pytest.raises(Killed):
            ocr("read", document, "-o", "out", "--format", "txt")
    assert (tmp_path / "out/a.txt").is_file()
    assert ocr("read", document, "-o", "out", "--format", "txt", "--resume") == 0, ocr.err
    assert ocr.seen == []
    assert (tmp_path / "out/a.txt").read_text() == "page 1\n\fpage 2\n"
    assert files(tmp_path / "out") == {"a.txt", "ocr-run.jsonl"}


def test_killed_before_the_parts_of_a_whole_document_are_gone(
    ocr: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = pdf(tmp_path / "a.pdf", 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Disk, "remove", lambda self, folder: None)
        assert ocr("read", document, "-o", "out") == 0
    assert (tmp_path / "out/.ocr-parts").is_dir()
    assert ocr("read", document, "-o", "out", "--resume") == 0
    assert not ocr.readers[-1].started
    assert files(tmp_path / "out") == {"a.md", "ocr-run.jsonl"}


def test_a_run_leaves_finished_pages_of_other_documents(ocr: Program, tmp_path: Path) -> None:
    document, other = pdf(tmp_path / "a.pdf", 1, 2, 3, 4), png(tmp_path / "b.png", 5)
    stop_at(ocr, 3)
    assert ocr("read", document, "-o", "out", "--jobs", "1") == 130
    ocr.script = failing()
    assert ocr("read", other, "-o", "out") == 0
    assert ocr("read", document, "-o", "out", "--resume") == 0
    assert ocr.seen == [3, 4]


def test_documents_of_several_runs_are_not_read_again(ocr: Program, tmp_path: Path) -> None:
    first, second = png(tmp_path / "a.png", 1), png(tmp_path / "b.png", 2)
    assert ocr("read", first, "-o", "out") == 0
    assert ocr("read", second, "-o", "out") == 0
    assert ocr("read", first, second, "-o", "out", "--resume") == 0
    assert ocr.seen == []


def test_a_document_begun_anew_is_not_taken_for_the_one_before(ocr: Program, tmp_path: Path) -> None:
    document = pdf(tmp_path / "a.pdf", 1, 2, 3)
    assert ocr("read", document, "-o", "out") == 0
    stop_at(ocr, 2)
    assert ocr("read", document, "-o", "out", "--jobs", "1") == 130
    ocr.script = failing()
    assert ocr("read", document, "-o", "out", "--resume") == 0
    assert ocr.seen == [2, 3]


def test_a_reader_that_cannot_start_costs_no_finished_page(ocr: Program, tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(self: ScriptedReader) -> int:
        raise CommandFailed("nobody there")

    document = pdf(tmp_path / "a.pdf", 1, 2, 3)
    stop_at(ocr, 3)
    assert ocr("read", document, "-o", "out", "--jobs", "1") == 130
    with monkeypatch.context() as patch:
        patch.setattr(ScriptedReader, "start", refuse)
        assert ocr("read", document, "-o", "out") == 1
    ocr.script = failing()
    assert ocr("read", document, "-o", "out", "--resume") == 0
    assert ocr.seen == [3]


def test_failures_are_retried_with_other_settings_and_the_rest_stays(ocr: Program, tmp_path: Path) -> None:
    document, fine = pdf(tmp_path / "a.pdf", 1, 2, 3), png(tmp_path / "b.png", 4)
    ocr.script = failing(2)
    assert ocr("read", document, fine, "-o", "out", "--format", "txt") == 1
    assert ocr("read", document, fine, "-o", "out", "--format", "txt", "--retry-failed", "--dpi", "100") == 1
    assert ocr.seen == [2]
    ocr.script = failing()
    assert ocr("read", document, fine, "-o", "out", "--format", "txt", "--retry-failed", "--max-new-tokens", "9") == 0
    assert ocr.seen == [2]
    assert (tmp_path / "out/a.txt").read_text() == "page 1\n\fpage 2\n\fpage 3\n"
    assert files(tmp_path / "out") == {"a.txt", "b.txt", "ocr-run.jsonl"}
    assert ocr("read", document, fine, "-o", "out", "--format", "txt", "--resume") == 0
    assert ocr.seen == []  # the page's second reading stands for its first


def test_pages_of_two_versions_of_a_document_are_never_mixed(ocr: Program, tmp_path: Path) -> None:
    document = pdf(tmp_path / "a.pdf", 1, 2)
    ocr.script = failing(2)
    assert ocr("read", document, "-o", "out", "--format", "txt") == 1
    pdf(document, 5, 6)
    os.utime(document, (1, 1))
    assert ocr("read", document, "-o", "out", "--format", "txt", "--retry-failed") == 1
    assert ocr.seen == [6]
    assert "1 page not read: --resume reads what is left" in ocr.err
    assert (tmp_path / "out/a.txt").read_text() == "page 1\n\f"
    assert ocr("read", document, "-o", "out", "--format", "txt", "--resume") == 0
    assert ocr.seen == [5]
    assert (tmp_path / "out/a.txt").read_text() == "page 5\n\fpage 6\n"


def test_a_retry_that_leaves_pages_unread_is_no_success(ocr: Program, tmp_path: Path) -> None:
    assert ocr("read", png(tmp_path / "a.png", 1), "-o", "out", "--retry-failed") == 1
    assert "1 page not read" in ocr.err
