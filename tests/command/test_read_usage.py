"""``ocr-onnx read``'s command line, and documents of every size and kind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.command.source import DocumentSource
from server.writers import FORMATS
from tests.command.conftest import ROOT, Program, ScriptedReader, page_of
from tests.command.material import files, lines, pdf, png, stop_at
from tests.pdfs import encrypted, scanned_pdf, text_pdf


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


def test_a_page_is_drawn_at_twice_what_the_model_sees_unless_that_is_not_all(ocr: Program, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(text_pdf(["words"], (1000, 1000)))  # points: 2000 x 2000 pixels
    ocr.script, sizes = lambda number, page: f"{page.width} x {page.height}", []
    ocr.sees = 1_250_000
    for formats, dpi in (("json", ""), ("json", "--dpi=72"), ("json", "--dpi=144"), ("json,pdf", "")):
        assert ocr("read", "a.pdf", "-o", "out", f"--format={formats}", *filter(None, [dpi])) == 0
        sizes.append(json.loads((tmp_path / "out/a.json").read_text())["pages"][0]["text"])
    assert sizes == ["1580 x 1580", "1000 x 1000", "2000 x 2000", "2000 x 2000"]


def test_a_picture_is_read_at_twice_what_the_model_sees_and_a_sheet_of_a4_as_it_is(
    ocr: Program, tmp_path: Path
) -> None:
    Image.new("RGB", (3000, 2000)).save(tmp_path / "a.png")
    ocr.script = lambda number, page: f"{page.width} x {page.height}"
    for sees, size in ((1_500_000, "2121 x 1414"), (100, "1736 x 1157"), (50_000_000, "3000 x 2000")):
        ocr.sees = sees
        assert ocr("read", "a.png") == 0
        assert ocr.out.strip() == size
    (tmp_path / "a4.pdf").write_bytes(text_pdf(["words"], (595.276, 841.89)))
    ocr.sees = 100
    assert ocr("read", "a4.pdf") == 0
    assert ocr.out.strip() == "1191 x 1684"


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
    open_source = DocumentSource.open
    monkeypatch.setattr(DocumentSource, "open", lambda self, *how: opened.append(1) or open_source(self, *how))

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


@pytest.mark.skipif(os.name == "nt", reason="streams are closed by the shell of POSIX")
@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_pages_are_drawn_though_standard_streams_are_closed(closed: str, tmp_path: Path) -> None:
    page, drawn = png(tmp_path / "a.png", 3), tmp_path / "drawn.png"
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\nfrom server.streams import have_streams\n"
        "from runtime.documents import open_document\nhave_streams()\n"
        "with open_document(Path(sys.argv[1])) as document:\n    document.page(0).save(sys.argv[2])\n"
    )
    command = f"'{sys.executable}' '{program}' '{page}' '{drawn}' {closed}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["sh", "-c", command], check=True, cwd=ROOT, env=environment)
    assert drawn.exists()
