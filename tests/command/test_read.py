"""``ocr-onnx read`` with a scripted reader: what is written where."""

from __future__ import annotations

import io
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.command.command_errors import CommandFailed
from tests.command.conftest import Program, failing, page_of
from tests.command.material import GROUNDED, files, lines, pdf, png
from tests.pdfs import encrypted, scanned_pdf, without_pages

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
    (told,) = [line for line in ocr.err.splitlines() if "half.png" in line]
    assert told.startswith("failed: ")
    assert told.count("half.png") == 1
    assert ", page 1: cannot be read (" in told
    assert "4 documents could not be opened" in ocr.err
    assert "1 page failed" in ocr.err


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
        together.wait(60)  # breaks unless three pages are in flight
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
