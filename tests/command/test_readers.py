"""The reader with a model in this process hands on what the command line says."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from models.config import load_config
from models.manifest import FILE_NAME
from models.settings import InferenceSettings
from server.command.readers import LocalReader
from server.options import ServerOptions
from tests.command.conftest import page_of
from tests.server.conftest import FakeSource
from tests.server.fake import hello


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[FakeSource]:
    """Each reader's source of scripted models, which are already exported."""
    made: list[FakeSource] = []

    def source(config: Any, options: Any, device: str) -> FakeSource:
        made.append(FakeSource(config, options, hello))
        return made[-1]

    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("server.command.readers.ModelSource", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


@pytest.mark.parametrize("raw", [False, True])
def test_raw_text_is_asked_of_the_model_and_is_another_reading(sources, tmp_path, raw) -> None:
    config = load_config(tmp_path / "config.toml", create=True)
    options = ServerOptions(model="paddleocr-vl", device="cpu")
    reader, plain = (
        LocalReader(config, options, "<image>OCR:", InferenceSettings(), threading.Event(), raw=flag)
        for flag in (raw, False)
    )
    folder = reader.key.folder
    folder.mkdir(parents=True)
    (folder / FILE_NAME).write_text("{}")
    assert (reader.identity() == plain.identity()) is not raw
    reader.start()
    assert reader.read(page_of(3)).text == "Hello, world."
    assert [request.raw for request in sources[0].models["paddleocr-vl"].requests] == [raw]
    assert reader.describe()["raw"] is raw
    for one in (reader, plain):
        one.close()
