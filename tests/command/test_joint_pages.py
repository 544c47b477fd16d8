"""``read --task pages``: all pages of a document in one answer, spread over results, ledger and manifest.

With the real readers: a scripted model in this process, or one behind a real server.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models.manifest import FILE_NAME
from models.model_errors import InvalidInput
from runtime.documents import Document, Drawn
from runtime.requests import Request
from server.command import read as read_command
from server.command.progress import PageWork, Progress
from server.command.readers import LocalReader
from tests.command.conftest import Program, page_of
from tests.pdfs import scanned_pdf
from tests.server.conftest import FakeSource, ServerProcess
from tests.server.fake import Step
from tests.server.fake_server import all_pages

SIZES = ((60, 40), (80, 30), (50, 50), (40, 70))


class Local:
    """Runs the program with the real reader over scripted models. ``script``: what they say."""

    def __init__(self, ocr: Program, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ocr = ocr
        self.sources: list[FakeSource] = []
        self.script: Callable[[Request], Any] = all_pages
        monkeypatch.setattr("server.command.readers.ModelSource", self._source)
        monkeypatch.setattr(read_command, "LocalReader", LocalReader)

    def _source(self, config: Any, options: Any, device: str) -> FakeSource:
        source = FakeSource(config, options, lambda request: self.script(request))
        folder = source.key(source.entry(options.model)).folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE_NAME).write_text("{}")
        self.sources.append(source)
        return source

    def __call__(self, *arguments: str | Path) -> int:
        return self._ocr("read", *arguments, "--model", "unlimited-ocr", "--task", "pages")

    @property
    def out(self) -> str:
        return self._ocr.out

    @property
    def err(self) -> str:
        return self._ocr.err

    @property
    def requests(self) -> list[Request]:
        """Of the last run."""
        model = self.sources[-1].models.get("unlimited-ocr")
        return [] if model is None else model.requests  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def local(ocr: Program, monkeypatch: pytest.MonkeyPatch) -> Local:
    pytest.importorskip("onnxruntime")
    return Local(ocr, monkeypatch)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    server = ServerProcess(["--slots", "4"], tmp_path_factory.mktemp("server"), "tests.server.fake_server")
    yield server
    server.kill()


@pytest.fixture(params=["local", "server"])
def read(request: pytest.FixtureRequest, local: Local) -> Callable[..., int]:
    if request.param == "local":
        return local
    return partial(local, "--server", request.getfixturevalue("behind").url)


def document(path: Path, numbers: Sequence[int] = (1, 2, 3, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(scanned_pdf([page_of(number, SIZES[i % 4]) for i, number in enumerate(numbers)]))
    return path


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "ocr-run.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["type"] == kind]


def pages_of(file: Path) -> list[dict[str, Any]]:
    pages: list[dict[str, Any]] = json.loads(file.read_text())["pages"]
    return pages


def texts_of(file: Path) -> list[str]:
    return [page["text"].rpartition(">")[2] for page in pages_of(file)]


def test_one_answer_is_spread_over_its_pages(read: Callable[..., int], tmp_path: Path) -> None:
    assert read(document(tmp_path / "a.pdf"), "-o", "out", "--format", "md,json", "--pages", "1,3-4") == 0
    out = tmp_path / "out"
    pages = pages_of(out / "a.json")
    assert [(page["page"], page["width"], page["height"]) for page in pages] == [
        (1, 60, 40), (3, 50, 50), (4, 40, 70),
    ]  # fmt: skip
    assert texts_of(out / "a.json") == ["page 1", "page 3", "page 4"]
    assert [page["boxes"][0]["box"] for page in pages] == [[0, 0, 29, 40], [0, 0, 24, 50], [0, 0, 19, 70]]
    assert [page["boxes"][0]["image"] for page in pages] == [f"images/a-p{n}-0.jpg" for n in (1, 3, 4)]
    for number, size in ((1, (29, 40)), (3, (24, 50)), (4, (19, 70))):
        with Image.open(out / f"images/a-p{number}-0.jpg") as figure:
            assert figure.size == size
            assert abs(figure.getpixel((5, 5))[0] - number) <= 3  # type: ignore[index]
    assert [page["usage"]["completion_tokens"] for page in pages] == [3, 3, 2]  # the mark is its page's
    assert sum(page["usage"]["prompt_tokens"] for page in pages) == 5 + 3 * 10
    ledger = lines(out, "page")
    assert [(entry["page"], entry["state"], entry["finish_detail"]) for entry in ledger] == [
        (1, "done", "eos"), (3, "done", "eos"), (4, "done", "eos"),
    ]  # fmt: skip
    assert [entry["pages"] for entry in lines(out, "document")] == ["1,3-4"]
    assert "<!-- page 3 -->\n\n![](images/a-p3-0.jpg)\npage 3" in (out / "a.md").read_text()


def test_each_document_is_an_answer_of_its_own(read: Callable[..., int], tmp_path: Path) -> None:
    document(tmp_path / "in/a.pdf", (1, 2))
    document(tmp_path / "in/b.pdf", (3,))
    document(tmp_path / "in/c.pdf", (4, 5, 6))
    assert read("in", "-o", "out", "--format", "txt", "--jobs", "2") == 0
    out = tmp_path / "out"
    assert (out / "a.txt").read_text() == "page 1\n\fpage 2\n"
    assert (out / "b.txt").read_text() == "page 3\n"
    assert (out / "c.txt").read_text() == "page 4\n\fpage 5\n\fpage 6\n"


def test_the_model_is_asked_once_with_the_settings_of_several_pages(local: Local, tmp_path: Path) -> None:
    assert local(document(tmp_path / "a.pdf"), "--format", "txt") == 0
    assert local.out == "page 1\n\fpage 2\n\fpage 3\n\fpage 4\n"
    (request,) = local.requests
    assert request.prompt == "<image>\n<image>\n<image>\n<image>Multi page parsing."
    assert request.settings.no_repeat_ngram_window == 1024
    assert request.settings.max_new_tokens > 8192  # the context ends it, or the user
    assert local(document(tmp_path / "b.pdf", (7,)), "--format", "txt", "--max-new-tokens", "9") == 0
    (request,) = local.requests
    assert (request.settings.no_repeat_ngram_window, request.settings.max_new_tokens) == (128, 9)


def test_words_that_are_the_tasks_own_mean_the_same(ocr: Program, local: Local, tmp_path: Path) -> None:
    path = document(tmp_path / "a.pdf")
    assert ocr("read", path, "--format", "txt", "--model", "unlimited-ocr", "--prompt", "Multi page parsing.") == 0
    assert len(local.requests) == 1
    assert ocr("read", path, "--format", "txt", "--model", "unlimited-ocr") == 0
    assert len(local.requests) == 4  # the default task reads page by page


def test_resume_keeps_whole_documents_and_reads_others_anew(local: Local, tmp_path: Path) -> None:
    path, out = document(tmp_path / "a.pdf"), tmp_path / "out"
    more = ("-o", "out", "--format", "json", "--resume")
    assert local(path, *more) == 0
    assert local(path, *more) == 0
    assert local.requests == []
    # With other pages it is another answer, and every page of it is another page.
    local.script = lambda request: ["x<PAGE>y"]
    assert local(path, *more, "--pages", "1-2") == 0
    assert [len(request.images) for request in local.requests] == [2]
    assert texts_of(out / "a.json") == ["x", "y"]


def test_a_run_that_was_killed_between_two_pages_reads_them_all_again(
    local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept = document(tmp_path / "a.pdf"), read_command.OutputFolder.put

    def put(self: Any, plan: Any, result: Any, made: Any) -> None:
        if result.page == 3:
            raise KeyboardInterrupt
        kept(self, plan, result, made)

    with monkeypatch.context() as patch:
        patch.setattr(read_command.OutputFolder, "put", put)
        assert local(path, "-o", "out", "--format", "json") != 0
    assert not (tmp_path / "out/a.json").exists()
    assert local(path, "-o", "out", "--format", "json", "--resume") == 0
    assert [len(request.images) for request in local.requests] == [4]
    assert texts_of(tmp_path / "out/a.json") == ["page 1", "page 2", "page 3", "page 4"]


def test_ctrl_c_ends_the_answer_and_resume_begins_it_again(local: Local, tmp_path: Path) -> None:
    began = threading.Event()

    def endless(request: Request) -> Iterator[Step]:
        yield "page 1<PAGE>"
        began.set()
        yield from itertools.repeat(0.05)

    def press() -> None:
        began.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    local.script = endless
    path = document(tmp_path / "a.pdf")
    threading.Thread(target=press, daemon=True).start()
    assert local(path, "-o", "out", "--format", "txt") == 130
    out = tmp_path / "out"
    assert lines(out, "page") == []
    assert "4 pages not read: --resume reads what is left" in local.err
    local.script = all_pages
    assert local(path, "-o", "out", "--format", "txt", "--resume") == 0
    assert (out / "a.txt").read_text() == "page 1\n\fpage 2\n\fpage 3\n\fpage 4\n"


@pytest.mark.parametrize("end", [("length", "max_tokens"), ("stop", "eos")])
def test_pages_that_the_answer_does_not_reach_have_failed(local: Local, tmp_path: Path, end: Any) -> None:
    local.script = lambda request: ["a<PAGE>b", end]
    path, out = document(tmp_path / "a.pdf"), tmp_path / "out"
    assert local(path, "-o", "out", "--format", "json") == 1
    states = [(page["state"], page.get("finish_detail"), page.get("error")) for page in pages_of(out / "a.json")]
    reason = f"the answer to all pages together ended before this one ({end[1]})"
    assert states == [
        ("done", "eos", None), ("done", end[1], None), ("failed", None, reason), ("failed", None, reason),
    ]  # fmt: skip
    assert (f"cut off by {end[1]}" in local.err) is (end[1] == "max_tokens")
    # What has failed is read again with all that is read together with it.
    local.script = all_pages
    assert local(path, "-o", "out", "--format", "json", "--resume") == 1
    assert local.requests == []
    assert local(path, "-o", "out", "--format", "json", "--retry-failed") == 0
    assert [len(request.images) for request in local.requests] == [4]
    assert texts_of(out / "a.json") == ["page 1", "page 2", "page 3", "page 4"]


def test_a_page_that_cannot_be_drawn_is_left_out_of_the_answer(
    read: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Document.draw

    def draw(self: Document, index: int, *more: Any) -> Drawn:
        if index == 1:
            raise InvalidInput("page 2 is damaged")
        return drawn(self, index, *more)

    monkeypatch.setattr(Document, "draw", draw)
    assert read(document(tmp_path / "a.pdf"), "-o", "out", "--format", "json") == 1
    pages = pages_of(tmp_path / "out/a.json")
    assert [page["state"] for page in pages] == ["done", "failed", "done", "done"]
    assert pages[1]["error"] == "page 2 is damaged"
    assert [page["text"].rpartition(">")[2] for page in pages if page["state"] == "done"] == [
        "page 1", "page 3", "page 4",
    ]  # fmt: skip


def test_a_failure_of_the_model_is_one_of_all_its_pages(local: Local, tmp_path: Path) -> None:
    def broken(request: Request) -> Iterator[Step]:
        if len(request.images) == 4:
            raise RuntimeError("scripted failure")
        yield from all_pages(request)

    local.script = broken
    document(tmp_path / "in/a.pdf")
    document(tmp_path / "in/b.pdf", (5, 6))
    assert local("in", "-o", "out", "--format", "json") == 1
    failed = [(entry["page"], entry["error"]) for entry in lines(tmp_path / "out", "page") if entry["error"]]
    assert failed == [(number, "scripted failure") for number in (1, 2, 3, 4)]
    assert texts_of(tmp_path / "out/b.json") == ["page 5", "page 6"]


def test_the_bar_says_how_many_pages_of_an_answer_are_written() -> None:
    progress = Progress(4, quiet=True)
    work = progress.begin(4)
    assert "0 of 4 pages written" in progress.words()
    for piece in ("a<PA", "GE>b", "<PAGE", ">", "c"):
        work.add(piece, 1)
    assert "2 of 4 pages written, 5 tokens" in progress.words()
    work.begin_again("sent")
    assert "0 of 4 pages written" in progress.words()
    progress.end(work)
    assert "written" not in progress.words()
    assert PageWork().pages == 1
