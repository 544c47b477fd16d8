"""A server inside the test with scripted models, and one in a process of its own."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from falcon.testing import TestClient
from PIL import Image

from models.config import Config, load_config
from runtime.library.source import ModelKey, ModelSource
from runtime.requests import TextModel
from server.fetch import Fetcher
from server.http.app import Application, build
from server.options import ServerOptions
from tests.server.fake import Script, ScriptedModel, hello

ROOT = Path(__file__).parents[2]

# Ids of the catalogue that this version serves, in the order of /v1/models without one to start with.
MODELS = [
    "deepseek-ocr", "deepseek-ocr-2", "dots-mocr", "dots-ocr", "glm-ocr", "lighton-ocr", "lighton-ocr-3",
    "paddleocr-vl", "paddleocr-vl-1.5", "paddleocr-vl-1.6", "tiny-ocr", "unlimited-ocr",
]  # fmt: skip


def data_url(image: Image.Image | None = None, form: str = "PNG") -> str:
    """A data: URL of an image, a small white one by default."""
    data = written(image or Image.new("RGB", (40, 30), "white"), form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(data).decode()}"


def written(image: Image.Image, form: str) -> bytes:
    """The file of an image. Pillow cannot write HEIF by itself: its plugin is registered when a first one is read."""
    buffer = io.BytesIO()
    if form == "HEIF":
        import pillow_heif

        pillow_heif.from_pillow(image).save(buffer)
    else:
        image.save(buffer, form)
    return buffer.getvalue()


def image_part(url: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url or data_url()}}


def chat(text: str = "Free OCR.", model: str = "deepseek-ocr", url: str | None = None, **more: Any) -> dict[str, Any]:
    """The body of a chat request with one image and a text."""
    content = [image_part(url), {"type": "text", "text": text}]
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


class FakeSource(ModelSource):
    """Knows the configured models like the real one, loads scripted ones."""

    def __init__(self, config: Config, options: ServerOptions, script: Script) -> None:
        super().__init__(config, options, "cpu")
        self.script = script
        self.models: dict[str, ScriptedModel] = {}
        self.loads: list[str] = []
        self.problem: Exception | None = None

    def is_exported(self, key: ModelKey) -> bool:
        return True

    def check(self, key: ModelKey) -> None: ...

    def load(self, key: ModelKey) -> TextModel:
        self.loads.append(key.entry.id)
        if self.problem is not None:
            raise self.problem
        self.models[key.entry.id] = ScriptedModel(
            self.script,
            self._options.slots or 4,
            self._options.capacity,  # as server.loading opens the real one
        )
        return self.models[key.entry.id]


@dataclass
class Service:
    """An application with scripted models and a client that calls it without a network."""

    application: Application
    source: FakeSource
    client: TestClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = TestClient(self.application.wsgi)

    def post(self, body: Any, path: str = "/v1/chat/completions", **more: Any) -> Any:
        return self.client.simulate_post(path, json=body, **more)


MakeService = Callable[..., Service]


@pytest.fixture
def make_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lent_workers: None) -> Iterator[MakeService]:
    """Build services; ``make(script=..., config_text=..., fetcher=..., any ServerOptions field)``."""
    monkeypatch.setenv("OCR_ONNX_CACHE", str(tmp_path / "cache"))
    services: list[Service] = []

    def make(script: Script = hello, config_text: str = "", fetcher: Fetcher | None = None, **options: Any) -> Service:
        path = tmp_path / f"config{len(services)}.toml"
        path.write_text(config_text)
        config = load_config(path)
        settings = replace(ServerOptions(), **options)
        source = FakeSource(config, settings, script)
        services.append(Service(build(config, settings, source, fetcher=fetcher), source))
        return services[-1]

    yield make
    for service in services:
        service.application.close()


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service()


class ServerProcess:
    """A server process on a free port; its log is kept in ``lines``."""

    def __init__(self, arguments: list[str], home: Path, module: str = "server", **environment: str) -> None:
        self.home = home
        env = {name: value for name, value in os.environ.items() if not name.startswith(("OCR_ONNX", "XDG_"))}
        env |= {"XDG_CACHE_HOME": str(home / "cache"), "XDG_CONFIG_HOME": str(home / "config"), **environment}
        command = [sys.executable, "-m", module, "--port", "0", *arguments]
        if "--host" not in arguments:
            command += ["--host", "127.0.0.1"]
        beside_others = "PYTEST_XDIST_WORKER" in os.environ  # whom threads that wait for each other would keep waiting
        if module == "server" and beside_others and "--threads" not in arguments:
            command += ["--threads", "1"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        )
        self.lines: list[str] = []
        self.port = 0
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        found = self.wait_for_line(r"listening on http://\S+:(\d+)")
        self.port = int(found[1])

    def ended(self, timeout: float = 60) -> int:
        """Wait for the end that the server comes to by itself; returns its status."""
        code = self.process.wait(timeout)
        self._reader.join(10)
        return code

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def find(self, pattern: str) -> re.Match[str] | None:
        return next((found for line in list(self.lines) if (found := re.search(pattern, line))), None)

    def wait_for_line(self, pattern: str, timeout: float = 60) -> re.Match[str]:
        """The first log line, past or future, that matches."""
        with self._changed:
            self._changed.wait_for(lambda: self.find(pattern) is not None or self._ended, timeout)
        found = self.find(pattern)
        assert found is not None, f"no line matches {pattern!r}:\n" + "\n".join(self.lines)
        return found

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        self.process.send_signal(number)
        code = self.process.wait(timeout)
        self._reader.join(10)
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        self._reader.join(10)


StartServer = Callable[..., ServerProcess]


@pytest.fixture
def start_fake(tmp_path: Path) -> Iterator[StartServer]:
    """Start server processes with scripted models (see ``fake_server``)."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **environment: str) -> ServerProcess:
            server = ServerProcess(list(arguments), tmp_path, "tests.server.fake_server", **environment)
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture(scope="module")
def fake_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server process with scripted models for the tests of a module that leave it as it was."""
    server = ServerProcess(["--slots", "4"], tmp_path_factory.mktemp("server"), "tests.server.fake_server")
    yield server
    server.kill()
