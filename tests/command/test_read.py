"""``ocr-onnx read`` with a scripted reader: what is written where, what is read again, how it ends."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.command import run as run_module
from server.command.errors import CommandFailed
from server.command.folder import OutputFolder
from server.command.inputs import Source
from server.writers import FORMATS
from tests.command.conftest import ROOT, Program, ScriptedReader, failing, page_of
from tests.pdfs import encrypted, scanned_pdf, text_pdf, without_pages


def pdf(path: Path, *numbers: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(scanned_pdf([page_of(number) for number in numbers]))
    return path


def png(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    page_of(number).save(path)
    return path


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    """The run manifest's lines of one kind."""
    entries = [json.loads(line) for line in (out / "ocr-run.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["type"] == kind]


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


# Standard output.


def test_one_picture_goes_to_standard_output(ocr: Program, tmp_path: Path) -> None:
    assert ocr("read", png(tmp_path / "a.png", 5)) == 0
    assert ocr.out == "page 5\n"
    assert files(tmp_path) == {"a.png", "config.toml"}


def test_pages_come_out_in_order_whatever_order_they_are_ready_in(ocr: Program, tmp_path: Path) -> None:
    first_may_go = threading.Event()

    def script(number: int, page: Image.Image) -> str:
        if number == 0:
            first_may_go.wait(10)
        if number == 2:
            first_may_go.set()
        return f"page {number}"

    ocr.script = script
    assert ocr("read", pdf(tmp_path / "a.pdf", 0, 1, 2, 3), "--format", "txt") == 0
    assert ocr.out == "page 0\n\fpage 1\n\fpage 2\n\fpage 3\n"
    assert ocr.readers[-1].seen[0] == 0


def test_json_on_standard_output_is_one_document(ocr: Program, tmp_path: Path) -> None:
    assert ocr("read", pdf(tmp_path / "a.pdf", 1, 2, 3), "--format", "json", "--pages", "2-") == 0
    document = json.loads(ocr.out)
    assert [page["text"] for page in document["pages"]] == ["page 2", "page 3"]
    assert [page["page"] for page in document["pages"]] == [2, 3]
    assert document["page_count"] == 3


def test_standard_input_is_read(ocr: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(scanned_pdf([page_of(8), page_of(9)]))

    monkeypatch.setattr("sys.stdin", Stdin())
    assert ocr("read", "-", "--format", "txt") == 0
    assert ocr.out == "page 8\n\fpage 9\n"


def test_a_failed_page_on_standard_output_leaves_the_others(ocr: Program, tmp_path: Path) -> None:
    ocr.script = failing(2)
    assert ocr("read", pdf(tmp_path / "a.pdf", 1, 2, 3)) == 1
    assert "page 1\n" in ocr.out
    assert "could not be read: page 2 is bad" in ocr.out
    assert "page 3\n" in ocr.out
    assert "page 2: page 2 is bad" in ocr.err


# The output folder.


def test_a_folder_gives_a_file_for_each_document_and_format_and_a_manifest(ocr: Program, tmp_path: Path) -> None:
    pdf(tmp_path / "in/sub/a.pdf", 1, 2)
    png(tmp_path / "in/b.png", 3)
    assert ocr("read", "in", "-o", "out", "--format", "md,json,txt") == 0
    out = tmp_path / "out"
    expected = {f"{name}.{form}" for name in ("b", "sub/a") for form in ("md", "json", "txt")}
    assert files(out) == {*expected, "ocr-run.jsonl"}
    assert (out / "sub/a.txt").read_text() == "page 1\n\fpage 2\n"
    assert [page["text"] for page in json.loads((out / "sub/a.json").read_text())["pages"]] == ["page 1", "page 2"]
    entries = {(entry["output"], entry["page"]): entry for entry in lines(out, "page")}
    assert set(entries) == {("b", 1), ("sub/a", 1), ("sub/a", 2)}
    entry = entries["sub/a", 2]
    assert (entry["state"], entry["prompt_tokens"], entry["completion_tokens"]) == ("done", 7, 3)
    assert (entry["finish_detail"], entry["error"]) == ("eos", None)
    assert entry["seconds"] >= 0
    assert entry["time"].startswith("20")
    assert {(entry["output"], entry["state"]) for entry in lines(out, "document")} == {("b", "done"), ("sub/a", "done")}


def test_one_document_may_go_to_a_file(ocr: Program, tmp_path: Path) -> None:
    assert ocr("read", pdf(tmp_path / "a.pdf", 1), "-o", "new/b.json") == 0
    assert json.loads((tmp_path / "new/b.json").read_text())["pages"][0]["text"] == "page 1"
    assert files(tmp_path / "new") == {"b.json", "b.json.ocr-run.jsonl"}


def test_a_file_of_results_may_lie_beside_its_document(ocr: Program, tmp_path: Path) -> None:
    png(tmp_path / "in/a.png", 1)
    assert ocr("read", "in/*.png", "-o", "result.md") == 0
    assert ocr("read", "in", "-o", "in/result.txt") == 0
    assert (tmp_path / "result.md").read_text() == (tmp_path / "in/result.txt").read_text() == "page 1\n"


def test_names_that_collide_do_not_overwrite_one_another(ocr: Program, tmp_path: Path) -> None:
    inputs = [
        pdf(tmp_path / "a/x.pdf", 1), png(tmp_path / "b/x.png", 2), pdf(tmp_path / "x.pdf", 3),
        png(tmp_path / "x.png", 4),
    ]  # fmt: skip
    assert ocr("read", *inputs, "-o", "out", "--format", "txt") == 0
    texts = {path.read_text() for path in (tmp_path / "out").rglob("*.txt")}
    assert texts == {f"page {number}\n" for number in (1, 2, 3, 4)}


def test_broken_documents_among_good_ones_are_recorded(ocr: Program, tmp_path: Path) -> None:
    good = pdf(tmp_path / "in/good.pdf", 1, 2)
    whole = good.read_bytes()
    (tmp_path / "in/cut.pdf").write_bytes(whole[:100])
    (tmp_path / "in/secret.pdf").write_bytes(encrypted(whole, "x"))
    (tmp_path / "in/none.pdf").write_bytes(without_pages())
    (tmp_path / "in/empty.png").write_bytes(b"")
    half = png(tmp_path / "in/half.png", 3)
    page_of(0, (500, 500)).effect_spread(20).save(half)
    half.write_bytes(half.read_bytes()[:-500])
    png(tmp_path / "in/fine.png", 4)
    assert ocr("read", "in", "-o", "out", "--format", "txt") == 1
    out = tmp_path / "out"
    assert (out / "good.txt").read_text() == "page 1\n\fpage 2\n"
    assert (out / "fine.txt").read_text() == "page 4\n"
    errors = {entry["output"]: entry.get("error") for entry in lines(out, "document") if entry["state"] == "failed"}
    assert set(errors) == {"cut", "secret", "none", "empty", "half"}
    assert "damaged or cut off" in str(errors["cut"])
    assert "encrypted" in str(errors["secret"])
    assert "no pages" in str(errors["none"])
    assert "0 bytes" in str(errors["empty"])
    (failed,) = [entry for entry in lines(out, "page") if entry["state"] == "failed"]
    assert "half.png cannot be read" in failed["error"]
    assert "4 documents could not be opened" in ocr.err
    assert "1 page failed" in ocr.err


GROUNDED = (
    "<|ref|>image<|/ref|><|det|>[[0, 0, 499, 999]]<|/det|>\n"
    "<|ref|>text<|/ref|><|det|>[[500, 0, 999, 999]]<|/det|>\nWords\n"
    "<|ref|>image<|/ref|><|det|>[[0, 0, 499, 999], [900, 900, 900, 900]]<|/det|>\n"
)


def test_figures_are_cut_out_and_linked(ocr: Program, tmp_path: Path) -> None:
    ocr.script = lambda number, page: GROUNDED
    pdf(tmp_path / "in/sub/a.pdf", 200, 100)
    assert ocr("read", "in", "-o", "out", "--format", "md,json", "--overlay") == 0
    out = tmp_path / "out"
    links = [line for line in (out / "sub/a.md").read_text().splitlines() if line.startswith("![")]
    assert links == [f"![](images/a-p{page}-{number}.jpg)" for page in (1, 2) for number in (0, 0, 1)]
    figure = Image.open(out / "sub/images/a-p1-0.jpg")
    assert figure.size == (29, 40)
    assert figure.convert("RGB").getpixel((5, 5))[0] > 150  # type: ignore[index]
    page = json.loads((out / "sub/a.json").read_text())["pages"][1]
    assert [box.get("image") for box in page["boxes"]] == [
        "images/a-p2-0.jpg", None, "images/a-p2-0.jpg", "images/a-p2-1.jpg",
    ]  # fmt: skip
    assert page["boxes"][1] == {"label": "text", "text": "Words", "box": [30, 0, 60, 40]}
    assert Image.open(out / "sub/overlays/a-p2.jpg").size == (60, 40)


def test_text_alone_needs_no_pictures(ocr: Program, tmp_path: Path) -> None:
    ocr.script = lambda number, page: GROUNDED
    assert ocr("read", png(tmp_path / "a.png", 1), "-o", "out", "--format", "txt") == 0
    assert files(tmp_path / "out") == {"a.txt", "ocr-run.jsonl"}


def test_files_of_the_user_are_not_replaced(ocr: Program, tmp_path: Path) -> None:
    png(tmp_path / "README.png", 1)
    mine = tmp_path / "out/README.md"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert ocr("read", "README.png", "-o", "out") == 2
    assert "README.md exists and was not made by this program" in ocr.err
    assert mine.read_text() == "mine"
    assert ocr("read", "README.png", "-o", "out", "--force") == 0
    assert mine.read_text() == "page 1\n"
    assert ocr("read", "README.png", "-o", "out") == 0  # by now it is ours


@pytest.mark.parametrize("picture", ["images/a-p1-0.jpg", "overlays/a-p1.jpg"])
def test_pictures_of_the_user_are_not_replaced(ocr: Program, tmp_path: Path, picture: str) -> None:
    ocr.script = lambda number, page: GROUNDED
    image = png(tmp_path / "a.png", 1)
    mine = tmp_path / "out" / picture
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert ocr("read", image, "-o", "out", "--overlay") == 2
    assert f"{picture} exists and was not made by this program" in ocr.err
    assert mine.read_text() == "mine"
    assert ocr("read", image, "-o", "out", "--format", "txt") == 0  # which has no pictures
    shutil.rmtree(tmp_path / "out")
    assert ocr("read", image, "-o", "out", "--overlay") == 0
    assert ocr("read", image, "-o", "out", "--overlay") == 0  # by now they are ours


def test_two_files_in_one_folder_have_pictures_of_their_own(ocr: Program, tmp_path: Path) -> None:
    ocr.script = lambda number, page: GROUNDED
    (tmp_path / "in/sub").mkdir(parents=True)
    first, second = pdf(tmp_path / "in/sub/a.pdf", 200), pdf(tmp_path / "a.pdf", 20)
    assert ocr("read", "in", "-o", "out/x.md", "--overlay") == 0
    assert ocr("read", second, "-o", "out/y.md", "--overlay") == 0
    out = tmp_path / "out"
    for name, colour in (("x", 200), ("y", 20)):
        assert f"![](images/{name}-p1-0.jpg)" in (out / f"{name}.md").read_text()
        figure = Image.open(out / f"images/{name}-p1-0.jpg").convert("RGB")
        assert abs(figure.getpixel((5, 5))[0] - colour) < 9  # type: ignore[index, operator]
        assert (out / f"overlays/{name}-p1.jpg").is_file()
    assert ocr("read", first, "-o", "out/x.md") == 0
    assert ocr("read", first, "-o", "out/y.json") == 2  # the pictures of y.md have its names
    assert "images/y-p1-" in ocr.err


def test_pages_in_flight_are_as_many_as_slots_or_jobs(ocr: Program, tmp_path: Path) -> None:
    together = threading.Barrier(3)

    def script(number: int, page: Image.Image) -> str:
        together.wait(10)  # breaks unless three pages are in flight
        return "x"

    ocr.script = script
    assert ocr("read", pdf(tmp_path / "a.pdf", *range(6)), "-o", "out") == 0
    assert ocr.readers[-1].most_alive == 3
    ocr.script = lambda number, page: "x"
    assert ocr("read", pdf(tmp_path / "b.pdf", *range(6)), "-o", "out2", "--jobs", "1") == 0
    assert ocr.readers[-1].most_alive == 1


def test_a_page_that_breaks_the_reader_in_an_unforeseen_way_is_recorded(ocr: Program, tmp_path: Path) -> None:
    ocr.script = lambda number, page: ZeroDivisionError("oh") if number == 2 else "x"
    assert ocr("read", pdf(tmp_path / "a.pdf", 1, 2, 3), "-o", "out") == 1
    (failed,) = [entry for entry in lines(tmp_path / "out", "page") if entry["state"] == "failed"]
    assert failed["error"] == "internal error: ZeroDivisionError: oh"


def test_a_page_whose_pictures_cannot_be_made_is_recorded(ocr: Program, tmp_path: Path, monkeypatch: Any) -> None:
    from server.writers import figures

    def overlay(page: Image.Image, boxes: Any, *, numbered: bool = False) -> Image.Image:
        if page.getpixel((0, 0)) == (2, 0, 0):
            raise RuntimeError("no font")
        return page

    monkeypatch.setattr(figures, "overlay", overlay)
    assert ocr("read", pdf(tmp_path / "a.pdf", 1, 2, 3), "-o", "out", "--overlay", "--format", "txt") == 1
    assert (tmp_path / "out/a.txt").read_text() == "page 1\n\f\fpage 3\n"
    assert "RuntimeError: no font" in ocr.err


def test_a_reader_that_cannot_go_on_ends_the_run_and_what_is_finished_stays(ocr: Program, tmp_path: Path) -> None:
    document = pdf(tmp_path / "a.pdf", *range(10))
    ocr.script = lambda number, page: CommandFailed("the model stopped") if number == 6 else f"page {number}"
    assert ocr("read", document, "-o", "out", "--format", "txt", "--jobs", "1") == 1
    assert "error: the model stopped" in ocr.err
    assert "4 pages not read" in ocr.err
    assert not (tmp_path / "out/a.txt").exists()
    ocr.script = lambda number, page: f"page {number}"
    assert ocr("read", document, "-o", "out", "--format", "txt", "--resume") == 0
    assert ocr.seen == [6, 7, 8, 9]
    assert (tmp_path / "out/a.txt").read_text().count("page") == 10


# Going on.


def stop_at(ocr: Program, number: int) -> None:
    """Let the run be interrupted while it reads this page."""

    def script(seen: int, page: Image.Image) -> str:
        if seen == number:
            signal.raise_signal(signal.SIGINT)
            ocr.readers[-1].stop.wait(10)
            raise run_module.Interrupted
        return f"page {seen}"

    ocr.script = script


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

    note = OutputFolder._note

    def die(self: OutputFolder, kind: str, **fields: Any) -> None:
        if kind == "document":
            raise Killed
        note(self, kind, **fields)

    document = pdf(tmp_path / "a.pdf", 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "_note", die)
        with pytest.raises(Killed):
            ocr("read", document, "-o", "out", "--format", "txt")
    assert (tmp_path / "out/a.txt").is_file()
    assert ocr("read", document, "-o", "out", "--format", "txt", "--resume") == 0, ocr.err
    assert ocr.seen == []
    assert (tmp_path / "out/a.txt").read_text() == "page 1\n\fpage 2\n"
    assert files(tmp_path / "out") == {"a.txt", "ocr-run.jsonl"}


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


def test_two_runs_do_not_write_to_one_folder(ocr: Program, tmp_path: Path) -> None:
    document = png(tmp_path / "a.png", 1)
    codes = []
    messages = []

    def script(number: int, page: Image.Image) -> str:
        from server.command.errors import UsageError
        from server.command.folder import OutputFolder

        try:
            OutputFolder(tmp_path / "out", ["md"], overlay=False).__enter__()
        except UsageError as error:
            messages.append(str(error))
        return "x"

    ocr.script = script
    codes.append(ocr("read", document, "-o", "out"))
    assert codes == [0]
    assert "another run is writing to" in messages[0]


def test_a_disk_that_is_full_ends_the_run_with_a_reason(ocr: Program, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    assert ocr("read", pdf(tmp_path / "a.pdf", 1, 2), "-o", "out") == 1
    assert "cannot be written" in ocr.err
    assert "No space left on device" in ocr.err


@pytest.mark.parametrize("when", ["publishing", "page line", "document line"])
def test_a_disk_that_fills_up_ends_the_run_with_a_reason_wherever_it_does(
    ocr: Program, tmp_path: Path, monkeypatch: Any, when: str
) -> None:
    document = pdf(tmp_path / "a.pdf", 1)  # of two pages the other one may be kept or not when one's line fails
    replace, dumps = Path.replace, json.dumps

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if when == "publishing":
            patch.setattr(Path, "replace", lambda self, to: full() if to.suffix == ".txt" else replace(self, to))
        else:
            kind = when.removesuffix(" line")
            patch.setattr(json, "dumps", lambda it, **_: full() if f"'type': '{kind}'" in str(it) else dumps(it))
        assert ocr("read", document, "-o", "out", "--format", "txt") == 1
    assert "cannot be written: [Errno 28] No space left on device; go on with --resume" in ocr.err
    assert ocr("read", document, "-o", "out", "--format", "txt", "--resume") == 0
    assert ocr.seen == []
    assert (tmp_path / "out/a.txt").read_text() == "page 1\n"


def test_what_the_system_refuses_elsewhere_is_told_without_a_traceback(ocr: Program, tmp_path: Path) -> None:
    manifest = tmp_path / "out/ocr-run.jsonl"
    manifest.mkdir(parents=True)
    assert ocr("read", png(tmp_path / "a.png", 1), "-o", "out") == 1
    assert ocr.err.startswith("error: ")
    assert str(manifest) in ocr.err


def test_a_name_of_any_length_or_shape_stops_nothing(ocr: Program, tmp_path: Path) -> None:
    ocr.script = lambda number, page: GROUNDED
    png(tmp_path / "in" / f"{'n' * 251}.png", 1)
    png(tmp_path / "in/r.md/x.png", 2)
    png(tmp_path / "in/r.png", 3)
    assert ocr("read", "in", "-o", "out", "--format", "md,json", "--overlay") == 0, ocr.err
    assert len(list((tmp_path / "out").rglob("*.json"))) == 3
    assert len(list((tmp_path / "out").rglob("*-p1.jpg"))) == 3


def test_an_error_does_not_wait_for_the_pages_that_are_being_read(
    ocr: Program, tmp_path: Path, monkeypatch: Any
) -> None:
    def script(number: int, page: Image.Image) -> str:
        if number == 2:
            ocr.readers[-1].stop.wait(10)
        return "x"

    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    ocr.script = script
    monkeypatch.setattr(OutputFolder, "settle", broken)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="broken"):
        ocr("read", pdf(tmp_path / "a.pdf", 1, 2), "-o", "out")
    assert time.monotonic() - started < 5


@pytest.mark.skipif(os.name == "nt", reason="Windows has no folders to flush")
def test_everything_is_on_the_disk_before_what_it_replaces_goes(ocr: Program, tmp_path: Path, monkeypatch: Any) -> None:
    events: list[tuple[str, int]] = []  # what was done, and to which file or folder
    numbers: dict[str, int] = {}
    fsync, replace, rmtree = os.fsync, Path.replace, shutil.rmtree

    def watched_fsync(handle: int) -> None:
        events.append(("sync", os.fstat(handle).st_ino))
        fsync(handle)

    def watched_replace(self: Path, target: Path) -> Path:
        events.append(("replace", self.stat().st_ino))
        numbers[target.name] = self.stat().st_ino
        return replace(self, target)

    def watched_rmtree(path: Path, **more: Any) -> None:
        if path.name not in (".ocr-parts", "tmp") and path.is_dir():
            events.append(("remove", path.stat().st_ino))
        rmtree(path, **more)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    monkeypatch.setattr("server.command.stores.shutil.rmtree", watched_rmtree)
    ocr.script = lambda number, page: GROUNDED
    assert ocr("read", png(tmp_path / "a.png", 1), "-o", "out") == 0
    assert set(numbers) == {"a.md", "1.json", "a-p1-0.jpg", "a-p1-1.jpg"}
    for number in numbers.values():
        assert events.index(("sync", number)) < events.index(("replace", number))
    published = events.index(("replace", numbers["a.md"]))
    (removed,) = (index for index, (what, _) in enumerate(events) if what == "remove")
    folder, manifest = tmp_path / "out", tmp_path / "out/ocr-run.jsonl"
    for path in (folder, manifest):
        assert ("sync", path.stat().st_ino) in events[published:removed]
    assert ("sync", manifest.stat().st_ino) in events[events.index(("replace", numbers["1.json"])) : published]


def test_a_document_that_vanishes_is_recorded(ocr: Program, tmp_path: Path) -> None:
    first, second = pdf(tmp_path / "in/a.pdf", 1), pdf(tmp_path / "in/b.pdf", 2)

    def script(number: int, page: Image.Image) -> str:
        second.unlink(missing_ok=True)
        return "x"

    ocr.script = script
    assert ocr("read", first, second, "-o", "out", "--jobs", "1") == 1
    assert (tmp_path / "out/a.md").exists()
    assert "b.pdf" in ocr.err
    assert [entry["state"] for entry in lines(tmp_path / "out", "document")] == ["done", "failed"]


def test_documents_are_closed_when_their_pages_are_done(ocr: Program, tmp_path: Path, monkeypatch: Any) -> None:
    opened: list[str] = []
    most = 0

    real = Source.open

    def watch(self: Source, *how: Any) -> Any:
        nonlocal most
        document = real(self, *how)
        opened.append(self.name)
        most = max(most, len(opened))
        close = document.close

        def closing() -> None:
            if self.name in opened:
                opened.remove(self.name)
            close()

        document.close = closing  # type: ignore[method-assign]
        return document

    monkeypatch.setattr(Source, "open", watch)
    for number in range(12):
        pdf(tmp_path / f"in/{number}.pdf", number, number)
    assert ocr("read", "in", "-o", "out") == 0
    assert opened == []
    assert most <= 4  # the slots, and one more


# Usage.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: INPUT"),
        (["nowhere.png"], "there is no such file or folder"),
        (["a.png", "b.png"], "there are 2 documents; name a folder for their results with -o"),
        (["a.png", "b.png", "-o", "x.md"], "there are 2 documents"),
        (["a.png", "--resume"], "--resume needs an output folder"),
        (["a.png", "--retry-failed"], "--retry-failed needs an output folder"),
        (["a.png", "--overlay"], "--overlay needs an output folder"),
        (["a.png", "--format", "rtf"], f"expected {', '.join(FORMATS)}, found 'rtf'"),
        (["a.png", "--format", "md,json"], "standard output takes one --format"),
        (["a.png", "-o", "x.md", "--format", "json"], "asks for md and --format for json"),
        (["a.png", "-o", "a.png"], "is a file; name a folder"),
        (["a.png", "--pages", "x"], "pages 'x' cannot be read"),
        (["a.png", "--dpi", "5"], "--dpi is 5; it must be between 18 and 1200"),
        (["a.png", "--jobs", "0"], "expected an integer of at least 1"),
        (["a.png", "--task", "nope"], "task 'nope' is unknown to this model; its tasks are markdown"),
        (["a.png", "--task", "locate"], "needs a text"),
        (["a.png", "--prompt", " "], "the prompt is empty"),
        (["a.png", "--prompt", "x", "--prompt-file", "y"], "say the same thing"),
        (["a.png", "--prompt-file", "nowhere"], "--prompt-file nowhere cannot be read"),
        (["a.png", "--prompt", "<image><image>"], "has 2 <image> slots; a page takes one"),
        (["a.png", "--temperature", "-1"], "temperature is -1"),
        (["a.png", "--model", "nope"], "model 'nope' is not known; known models: deepseek-ocr"),
        (["a.png", "--server", "gpu"], "is no address; write one such as http://gpu:8000"),
        (["a.png", "--server", "http://x", "--device", "cpu"], "--device belongs to a model in this process"),
    ],
)
def test_wrong_command_lines_are_explained(ocr: Program, tmp_path: Path, arguments: list[str], words: str) -> None:
    png(tmp_path / "a.png", 1)
    png(tmp_path / "b.png", 2)
    assert ocr("read", *arguments) == 2
    assert words in ocr.err
    assert not any(reader.started for reader in ocr.readers)
    assert not (tmp_path / "x.md").exists()


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [
        ([], "<image>\n<|grounding|>Convert the document to markdown."),
        (["--model", "tiny-ocr"], "<image>\nFree OCR."),
        (["--task", "ocr"], "<image>\n<|grounding|>OCR this image."),
        (["--task", "locate", "--prompt", "total"], "<image>\nLocate <|ref|>total<|/ref|> in the image."),
        (["--prompt", "What is it?"], "<image>\nWhat is it?"),
        (["--prompt", "Is <image> a bill?"], "Is <image> a bill?"),
        (["--prompt-file", "prompt.txt"], "<image>\nFrom a file."),
    ],
)
def test_the_prompt_comes_from_task_text_or_file(
    ocr: Program, tmp_path: Path, arguments: list[str], prompt: str
) -> None:
    (tmp_path / "prompt.txt").write_text("From a file.\n")
    assert ocr("read", png(tmp_path / "a.png", 1), *arguments) == 0
    assert ocr.readers[-1].prompt == prompt


def test_a_page_is_read_to_its_end_unless_somebody_says_otherwise(ocr: Program, tmp_path: Path) -> None:
    image = png(tmp_path / "a.png", 1)
    ocr("read", image, "--top-k", "5", "--crop-mode", "false")
    settings = ocr.readers[-1].settings
    assert (settings.max_new_tokens, settings.top_k, settings.family["crop_mode"]) == (8192, 5, False)
    ocr("read", image, "--max-new-tokens", "7")
    assert ocr.readers[-1].settings.max_new_tokens == 7
    (tmp_path / "config.toml").write_text("[inference]\nmax_new_tokens = 99\n")
    ocr("read", image)
    assert ocr.readers[-1].settings.max_new_tokens == 99


def test_text_that_was_cut_off_is_said_with_the_setting_to_raise(
    ocr: Program, tmp_path: Path, monkeypatch: Any
) -> None:
    from server.command.readers import Reading
    from tests.command.conftest import ScriptedReader

    monkeypatch.setattr(ScriptedReader, "read", lambda self, page, work: Reading("x", (), "max_tokens", 1, 1))
    document = pdf(tmp_path / "a.pdf", 1, 2)
    assert ocr("read", document, "-o", "out") == 0
    assert "warning: the text of 2 pages was cut off by max_tokens; raise --max-new-tokens" in ocr.err
    assert ocr("read", document, "-o", "out", "--quiet") == 0
    assert ocr.err == ""


def test_of_several_documents_those_of_the_wanted_pages_are_read_that_each_has(ocr: Program, tmp_path: Path) -> None:
    pdf(tmp_path / "in/long.pdf", 1, 2, 3)
    pdf(tmp_path / "in/middle.pdf", 5, 6)
    pdf(tmp_path / "in/short.pdf", 4)
    assert ocr("read", "in", "-o", "out", "--pages", "2-3", "--format", "txt") == 0
    assert (tmp_path / "out/long.txt").read_text() == "page 2\n\fpage 3\n"
    assert (tmp_path / "out/middle.txt").read_text() == "page 6\n"
    assert not (tmp_path / "out/short.txt").exists()
    assert "short.pdf has 1 page, and none of --pages 2-3" in ocr.err


def test_pages_beyond_the_end_of_the_only_document_are_an_error(ocr: Program, tmp_path: Path) -> None:
    pdf(tmp_path / "short.pdf", 4)
    assert ocr("read", "short.pdf", "-o", "out", "--pages", "2-3") == 1
    assert "short.pdf: page 3 is beyond the end: there is 1 page" in ocr.err


def test_help_has_examples_and_every_setting(ocr: Program) -> None:
    assert ocr("read", "--help") == 0
    for words in (
        "ocr-onnx read report.pdf -o out --format md,json", "--max-new-tokens N", "(default: 8192)",
        "--no-repeat-ngram-size", "--retry-failed", "exit code: 0", "--server URL",
    ):  # fmt: skip
        assert words in ocr.out


def test_an_output_folder_that_cannot_be_made_is_explained(ocr: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert ocr("read", png(tmp_path / "a.png", 1), "-o", "file/out") == 2
    assert "cannot be written" in ocr.err


def test_pages_of_a_picture_with_many_frames_are_pages(ocr: Program, tmp_path: Path) -> None:
    frames = [page_of(number) for number in (1, 2, 3)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert ocr("read", tmp_path / "a.tif", "--format", "txt") == 0
    assert ocr.out == "page 1\n\fpage 2\n\fpage 3\n"


def test_a_page_may_be_of_any_size_and_kind(ocr: Program, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/text.pdf").write_bytes(text_pdf(["words"]))
    (tmp_path / "in/wide.pdf").write_bytes(text_pdf(["words"], (14_400, 20)))
    ocr.script = lambda number, page: f"{page.width} x {page.height}"
    assert ocr("read", "in", "-o", "out", "--format", "txt") == 0
    assert (tmp_path / "out/text.txt").read_text() == "1190 x 1684\n"
    assert (tmp_path / "out/wide.txt").read_text() == "28800 x 40\n"


def test_an_interrupted_run_leaves_no_temporary_files(ocr: Program, tmp_path: Path) -> None:
    stop_at(ocr, 1)
    assert ocr("read", pdf(tmp_path / "a.pdf", 0, 1, 2), "-o", "out", "--jobs", "1") == 130
    left = files(tmp_path / "out")
    assert not any("tmp" in name for name in left)
    assert sum(name.endswith("1.json") for name in left) == 1
    shutil.rmtree(tmp_path / "out")


def test_an_output_file_of_no_format_is_refused_and_a_folder_may_have_such_a_name(ocr: Program, tmp_path: Path) -> None:
    png(tmp_path / "a.png", 1)
    assert ocr("read", "a.png", "-o", "x.html5") == 2
    assert "-o x.html5 ends in .html5, which is no format; there are .md, " in ocr.err
    assert "(a folder of that name: -o x.html5/)" in ocr.err
    assert ocr("read", "a.png", "-o", "x.mkd") == 2
    assert "did you mean '.md'?" in ocr.err
    assert ocr("read", "a.png", "-o", "x.html5/") == 0
    assert ocr("read", "a.png", "-o", "x.html5", "--force") == 0  # a folder by now
    assert (tmp_path / "x.html5" / "a.md").is_file()


def test_the_password_of_encrypted_documents_comes_from_the_flag_or_the_environment(
    ocr: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pdf = tmp_path / "secret.pdf"
    pdf.write_bytes(encrypted(scanned_pdf([page_of(1)]), "open sesame"))
    assert ocr("read", pdf) == 1
    assert "give its password (--password, OCR_ONNX_PDF_PASSWORD" in ocr.err
    assert ocr("read", pdf, "--password", "open sesame", "-o", tmp_path / "out") == 0
    assert "sesame" not in (tmp_path / "out" / "ocr-run.jsonl").read_text()
    monkeypatch.setenv("OCR_ONNX_PDF_PASSWORD", "open sesame")
    assert ocr("read", pdf) == 0
    assert ocr("read", pdf, "--password", "other") == 1


def test_a_folder_that_cannot_be_looked_into_is_a_failure_in_the_manifest(
    ocr: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    png(tmp_path / "in/a.png", 1)
    png(tmp_path / "in/locked/b.png", 2)
    scandir = os.scandir

    def locked(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert ocr("read", "in", "-o", "out") == 1
    assert (tmp_path / "out/a.md").exists()
    assert f"failed: {tmp_path / 'in/locked'} cannot be looked into: Permission denied" in ocr.err
    failed = [line for line in lines(tmp_path / "out", "document") if line["state"] == "failed"]
    assert [line["document"] for line in failed] == [str(tmp_path / "in/locked")]


def test_control_characters_in_names_never_reach_the_terminal(ocr: Program, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a\x1b]0;owned\x07\n\u202e.pdf").write_bytes(b"%PDF-1.4 nothing")
    (tmp_path / "in" / "b\x9b31m.png").write_bytes(b"nothing")
    assert ocr("read", "in", "-o", "out") == 1
    assert ocr("read", "in/none\x1b[2J.pdf") == 2
    assert set(map(str.isprintable, ocr.err.replace("\n", ""))) == {True}
    assert ocr("read", "in", "-o", "out2") == 1
    assert "\\x1b]0;owned\\x07\\n\\u202e.pdf" in ocr.err
    assert "\\x9b31m.png" in ocr.err
    assert all(sign.isprintable() or sign == "\n" for sign in ocr.err)


def test_pictures_are_opened_as_they_are_needed(ocr: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 40):
        png(tmp_path / f"in/{number}.png", number)
    (tmp_path / "in/broken.png").write_bytes((tmp_path / "in/1.png").read_bytes()[:20])
    opened: list[int] = []
    first_read: list[int] = []
    open_source = Source.open
    monkeypatch.setattr(Source, "open", lambda self, *how: opened.append(1) or open_source(self, *how))

    def script(number: int, page: Image.Image) -> str:
        first_read.append(len(opened))
        return f"page {number}"

    ocr.script = script
    assert ocr("read", "in", "-o", "out") == 1  # for the broken one
    assert first_read[0] <= 6  # documents, of forty
    assert "broken.png cannot be read" in ocr.err
    assert len([line for line in lines(tmp_path / "out", "document") if line["state"] == "done"]) == 39


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="streams are closed by the shell of POSIX")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_traceback(closed: str, tmp_path: Path) -> None:
    page = png(tmp_path / "a.png", 3)
    command = f"'{sys.executable}' -m server.command read '{page}' '{tmp_path}/none.png' {closed}"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in ended.stderr + ended.stdout
    assert ended.returncode == 2
    if "2>&-" not in closed:
        assert "there is no such file or folder" in ended.stderr
