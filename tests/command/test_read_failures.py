"""``ocr-onnx read`` where the disk, the system or a document fails: the run ends with a reason, or goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.command.folder import OutputFolder
from server.command.source import DocumentSource
from tests.command.conftest import Program
from tests.command.material import GROUNDED, lines, pdf, png
from tests.waiting import until


def test_two_runs_do_not_write_to_one_folder(ocr: Program, tmp_path: Path) -> None:
    document = png(tmp_path / "a.png", 1)
    codes = []
    messages = []

    def script(number: int, page: Image.Image) -> str:
        from server.command.command_errors import UsageError
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
    second = threading.Event()
    told: list[bool] = []  # whether the reader of the second page was told to stop, before its patience was over

    def script(number: int, page: Image.Image) -> str:
        if number == 1:
            second.wait(60)
            return "x"
        second.set()
        told.append(ocr.readers[-1].stop.wait(60))
        return "x"

    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    ocr.script = script
    monkeypatch.setattr(OutputFolder, "settle", broken)
    with pytest.raises(RuntimeError, match="broken"):
        ocr("read", pdf(tmp_path / "a.pdf", 1, 2), "-o", "out")
    until(lambda: told)
    assert told == [True]


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

    real = DocumentSource.open

    def watch(self: DocumentSource, *how: Any) -> Any:
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

    monkeypatch.setattr(DocumentSource, "open", watch)
    for number in range(12):
        pdf(tmp_path / f"in/{number}.pdf", number, number)
    assert ocr("read", "in", "-o", "out") == 0
    assert opened == []
    assert most <= 4  # the slots, and one more
