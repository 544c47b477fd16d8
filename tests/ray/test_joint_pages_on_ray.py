"""``read --task pages --ray``: a document is one answer of one engine; what comes out is what comes out without Ray."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.config import Config
from models.manifest import FILE_NAME
from models.settings import InferenceSettings
from server.command import on_ray
from server.command import read as read_command
from server.command.readers import LocalReader
from server.options import ServerOptions
from tests.command.conftest import Program, ocr, page_of
from tests.pdfs import scanned_pdf

from .conftest import NOT_HERE, STORE

__all__ = ["ocr"]  # a fixture

ROOT = str(Path(__file__).parents[2])
DEADLY = 99  # the page that kills the process that reads it
pytestmark = pytest.mark.ray


def scripted_models() -> None:
    """Let the real reader load scripted models, here or in an actor, whose process finds the tests by ``ROOT``."""
    if ROOT not in sys.path:
        sys.path.insert(0, ROOT)
    import os

    import server.command.readers as readers
    from runtime.requests import Request
    from tests.server.conftest import FakeSource
    from tests.server.fake_server import all_pages

    def script(request: Request) -> Any:
        if any(abs(page.getpixel((0, 0))[0] - DEADLY) <= 3 for page in request.images):  # type: ignore[index]
            os._exit(9)
        return all_pages(request)

    def source(config: Config, options: ServerOptions, device: str) -> FakeSource:
        made = FakeSource(config, options, script)
        folder = made.key(made.entry(options.model)).folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE_NAME).write_text("{}")
        return made

    readers.ModelSource = source  # type: ignore[assignment, misc]


def scripted_engine(
    config: Config, options: ServerOptions, prompt: str, settings: InferenceSettings, raw: bool, schema: str | None,
    several: InferenceSettings | None,
) -> LocalReader:  # fmt: skip
    """The reader of an actor."""
    scripted_models()
    return LocalReader(config, options, prompt, settings, threading.Event(), raw=raw, schema=schema, several=several)


@pytest.fixture(scope="module")
def one_node() -> Iterator[None]:
    """A cluster that the program finds joined: starting one takes longer than the reading here."""
    ray = pytest.importorskip("ray", reason=NOT_HERE)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=STORE)
    yield
    ray.shutdown()


@pytest.fixture
def program(one_node: None, ocr: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program with the real readers over scripted models, here and in actors."""
    pytest.importorskip("onnxruntime")
    import server.command.readers as readers

    monkeypatch.setattr(readers, "ModelSource", readers.ModelSource)  # is put back in the end
    scripted_models()
    monkeypatch.setattr(read_command, "LocalReader", LocalReader)
    monkeypatch.setattr(on_ray, "engine_of", scripted_engine)
    return ocr


def document(path: Path, *numbers: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(scanned_pdf([page_of(number, (60, 40 + 5 * i)) for i, number in enumerate(numbers)]))


def written(out: Path) -> dict[str, Any]:
    """All that was written, without seconds."""
    found: dict[str, Any] = {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.suffix in (".md", ".jpg")
    }
    for path in out.rglob("*.json"):
        found[path.name] = [
            {key: value for key, value in page.items() if key not in ("seconds", "timings")}
            for page in json.loads(path.read_text())["pages"]
        ]
    return found


def entries(out: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "ocr-run.jsonl").read_text().splitlines()]
    return [entry for entry in found if entry["type"] == kind]


READ = ("--format", "md,json", "--model", "unlimited-ocr", "--task", "pages")
RAY = ("--ray", "local", "--actors", "1", "--threads", "1")


def test_documents_come_out_the_same_with_ray_and_without(program: Program, tmp_path: Path) -> None:
    document(tmp_path / "in/a.pdf", 1, 2, 3)
    document(tmp_path / "in/b.pdf", 4)
    document(tmp_path / "in/c.pdf", 5, 6)
    (tmp_path / "in/broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    assert program("read", "in", "-o", "plain", *READ) == 1
    assert program("read", "in", "-o", "ray", *READ, *RAY) == 1
    assert "broken.pdf" in program.err
    plain = written(tmp_path / "plain")
    assert written(tmp_path / "ray") == plain
    assert [page["text"].rpartition(">")[2] for page in plain["a.json"]] == ["page 1", "page 2", "page 3"]
    assert len([name for name in plain if name.endswith(".jpg")]) == 6
    # What one has read is whole for the other; a choice of other pages is another answer.
    assert program("read", "in", "-o", "ray", *READ, "--resume") == 1
    assert "0 pages to read" in program.err
    assert program("read", "in", "-o", "plain", *READ, *RAY, "--resume") == 1
    assert "0 pages to read" in program.err
    assert program("read", "in/a.pdf", "-o", "plain", *READ, *RAY, "--resume", "--pages", "2-3") == 0
    assert [page["page"] for page in written(tmp_path / "plain")["a.json"]] == [2, 3]


@pytest.mark.cluster
def test_a_document_whose_page_is_deadly_is_recorded_and_the_others_are_read(program: Program, tmp_path: Path) -> None:
    document(tmp_path / "in/a.pdf", 1, 2)
    document(tmp_path / "in/b.pdf", 40, DEADLY)
    document(tmp_path / "in/c.pdf", 5, 6)
    assert program("read", "in", "-o", "out", *READ, *RAY) == 1
    pages = sorted((page["output"], page["page"], page["state"]) for page in entries(tmp_path / "out", "page"))
    assert pages == [
        ("a", 1, "done"), ("a", 2, "done"), ("b", 1, "failed"), ("b", 2, "failed"), ("c", 1, "done"), ("c", 2, "done"),
    ]  # fmt: skip
    failed = [page["error"] for page in entries(tmp_path / "out", "page") if page["state"] == "failed"]
    assert all("every process that read it died" in error for error in failed)
