"""``ocr-onnx`` with a scripted reader inside the test, and with the built-in model in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models.catalog import CATALOG
from models.grounding import parse_boxes
from models.model_errors import InvalidInput
from server.command import main as program
from server.command import read as read_command
from server.command.command_errors import Interrupted, PageFailed
from server.command.progress import PageWork
from server.command.readers import Reading
from tests.conftest import MakeOnce

ROOT = Path(__file__).parents[2]


def page_of(number: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """A page that says its number (0 to 255) in its colour."""
    return Image.new("RGB", size, (number, 0, 0))


class ScriptedReader:
    """See ``readers.Reader``: reads a page's colour. Its class attributes are the script, its lists the record."""

    joint = False

    def __init__(self, stop: threading.Event, prompt: str, settings: Any, raw: bool) -> None:
        self.stop, self.prompt, self.settings, self.raw = stop, prompt, settings, raw
        self.script: Callable[[int, Image.Image], str | Exception] = lambda number, page: f"page {number}"
        self.model = "scripted"
        self.slots = 3
        self.sees: int | None = None
        self.seen: list[int] = []
        self.alive = self.most_alive = 0
        self.started = self.closed = False
        self._lock = threading.Lock()

    def identity(self) -> str:
        return f"{self.model} {self.prompt} {self.settings} {self.raw}"

    def seen_pixels(self) -> int | None:
        return self.sees

    def describe(self) -> dict[str, object]:
        return {"model": self.model, "prompt": self.prompt}

    def start(self) -> int:
        self.started = True
        return self.slots

    def read(self, page: Image.Image, work: PageWork | None = None) -> Reading:
        number = page.getpixel((0, 0))[0]  # type: ignore[index]
        with self._lock:
            self.seen.append(number)
            self.alive += 1
            self.most_alive = max(self.most_alive, self.alive)
        try:
            if self.stop.is_set():
                raise Interrupted
            answer = self.script(number, page)
            if isinstance(answer, Exception):
                raise answer
            return Reading(answer, tuple(parse_boxes(answer, *page.size)), "eos", 7, 3, {"decode": 0.5})
        finally:
            with self._lock:
                self.alive -= 1

    def close(self) -> None:
        self.closed = True


class Program:
    """Runs ``ocr-onnx`` in this process; ``readers`` holds the reader of each run."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.script: Callable[[int, Image.Image], str | Exception] = lambda number, page: f"page {number}"
        self.model = "scripted"
        self.sees: int | None = None
        self.readers: list[ScriptedReader] = []
        self.out = self.err = ""

    def make_reader(
        self, config: Any, options: Any, prompt: str, settings: Any, stop: threading.Event, *, raw: bool,
        several: Any = None, schema: str | None = None,
    ) -> Any:  # fmt: skip
        assert several is None, "the scripted reader reads page by page"
        reader = ScriptedReader(stop, prompt, settings, raw)
        reader.script, reader.model, reader.sees = self.script, self.model, self.sees
        self.readers.append(reader)
        return reader

    def __call__(self, *arguments: str | Path) -> int:
        command, *others = map(str, arguments)
        self._capsys.readouterr()
        try:
            code = program.main([command, *others, "--config", str(self.folder / "config.toml"), "--init-config"])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        self.out, self.err = self._capsys.readouterr()
        return code

    @property
    def seen(self) -> list[int]:
        """Numbers of the pages that the last run read."""
        return sorted(self.readers[-1].seen)


@pytest.fixture
def ocr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lent_workers: None
) -> Iterator[Program]:
    """The program with a scripted reader and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("OCR_ONNX_API_KEY", raising=False)
    monkeypatch.setattr(read_command, "configure_log", lambda **_: None)
    monkeypatch.setattr(read_command.memory, "settle_malloc", lambda: None)
    monkeypatch.chdir(tmp_path)
    running = Program(tmp_path, capsys)
    monkeypatch.setattr(read_command, "LocalReader", running.make_reader)
    yield running
    assert all(reader.closed for reader in running.readers)


def failing(*numbers: int) -> Callable[[int, Image.Image], str | Exception]:
    """A script in which these pages cannot be read."""

    def script(number: int, page: Image.Image) -> str | Exception:
        if number in numbers:
            return PageFailed(f"scripted failure of {number}") if number % 2 else InvalidInput(f"page {number} is bad")
        return f"page {number}"

    return script


@pytest.fixture(scope="session")
def tiny_home(make_once: MakeOnce) -> Path:
    """A folder whose cache holds the built-in model in float32, exported as users do."""
    pytest.importorskip("torch")
    if not (Path(CATALOG["tiny-ocr"].source) / "model.safetensors").is_file():
        pytest.skip("the built-in model's weights are not in this checkout")
    command = [sys.executable, "-m", "export", "tiny-ocr", "--dtype", "f32"]

    def export(home: Path) -> None:
        subprocess.run(command, cwd=ROOT, env=environment(home), check=True, capture_output=True)

    return make_once("tiny", export)


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a process with a cache and a config.toml of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OCR_ONNX", "XDG_"))}
    return kept | {"XDG_CACHE_HOME": str(home / "cache"), "XDG_CONFIG_HOME": str(home / "config"), **more}


def command(*arguments: str | Path) -> list[str]:
    """The command line of ``ocr-onnx`` in a process of its own."""
    return [sys.executable, "-m", "server.command", *map(str, arguments)]


def run(
    home: Path, *arguments: str | Path, stdin: bytes | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run ``ocr-onnx`` to its end."""
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env=environment(home, **more), input=stdin, capture_output=True, timeout=280
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
