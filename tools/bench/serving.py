"""The HTTP server as a contender: pages per minute from one and from several clients at once."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from models.manifest import Manifest

from .material import endless_copy, page_image
from .ours import Ours
from .plan import Case, Kind, Plan
from .turns import BenchError, Memory
from .worker import ROOT

_MODEL_ID = "bench"
_START_SECONDS = 300.0


class Server:
    """See ``turns.Contender``. The server runs from the first ``prepare`` to ``close``."""

    def __init__(self, folder: Path, threads: int, plan: Plan) -> None:
        self._folder, self._threads, self._plan = folder, threads, plan
        self._dtype = Manifest.load(folder).dtype
        self._need = Ours(folder, threads, plan).memory("page")
        self._process: subprocess.Popen[str] | None = None
        self._home: tempfile.TemporaryDirectory[str] | None = None
        self._port = 0
        self._start: dict[str, float] = {}  # told once, with the first sample
        self._lines: list[str] = []

    def name(self, kind: Kind) -> str:
        return f"ours {self._dtype}"

    def can(self, case: Case) -> bool:
        return case.part == "server"

    def memory(self, kind: Kind) -> Memory:
        return self._need

    def prepare(self, case: Case) -> None:
        """Start the server, wait until it is ready, and send one short page."""
        if self._process is None:
            self._launch()
            self._post(4)

    def sample(self, case: Case) -> Mapping[str, float]:
        """Every client sends its pages one after the other; the clock runs from the first request to the last end."""
        pages = self._plan.pages_per_client
        latencies: list[float] = []

        def client(_: int) -> None:
            for _ in range(pages):
                started = time.perf_counter()
                self._post(self._plan.page_tokens)
                latencies.append(time.perf_counter() - started)

        started = time.perf_counter()
        with ThreadPoolExecutor(case.value) as clients:
            list(clients.map(client, range(case.value)))
        seconds = time.perf_counter() - started
        values = {"pages/min": 60 * pages * case.value / seconds, "s a page": sum(latencies) / len(latencies)}
        values |= self._start
        self._start = {}
        return values

    def close(self) -> None:
        """Stop the server and remove its home."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._home is not None:
            self._home.cleanup()
        self._process, self._home = None, None

    def _launch(self) -> None:
        # On the export's own file system, so that the copy is made of hard links.
        self._home = tempfile.TemporaryDirectory(prefix=".bench-", dir=self._folder.parent)
        home = Path(self._home.name)
        endless_copy(self._folder, home / "cache" / "deepseek-ocr" / "models" / _MODEL_ID / "onnx" / self._dtype)
        config = home / "config.toml"
        source = json.dumps(str(home))
        config.write_text(
            f'[models.entries.{_MODEL_ID}]\nkind = "deepseek-ocr"\nsource = {source}\ndtype = "{self._dtype}"\n'
        )
        command = [
            sys.executable, "-m", "server", "--config", str(config), "--model", _MODEL_ID, "--host", "127.0.0.1",
            "--port", "0", "--device", self._plan.device, "--threads", str(self._threads),
            "--slots", str(max(4, *self._plan.clients)),
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OCR_ONNX", "XDG_"))}
        environment |= {"XDG_CACHE_HOME": str(home / "cache"), "XDG_CONFIG_HOME": str(home / "config")}
        started = time.perf_counter()
        self._lines = []
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, encoding="utf-8", errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        while not self._is_ready():
            if self._process.poll() is not None or time.perf_counter() - started > _START_SECONDS:
                lines = " | ".join(self._lines[-5:])
                self.close()
                raise BenchError(f"the server did not become ready: {lines}")
            time.sleep(0.02)
        self._start = {
            "s to ready": time.perf_counter() - started,
            "GB resident at start": psutil.Process(self._process.pid).memory_info().rss / 1e9,
        }

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.append(line.rstrip())

    def _is_ready(self) -> bool:
        found = re.search(r"listening on http://\S+:(\d+)", "\n".join(self._lines))
        if found is None:
            return False
        self._port = int(found[1])
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _post(self, tokens: int) -> None:
        buffer = io.BytesIO()
        page_image(self._plan).save(buffer, "PNG", compress_level=1)
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Free OCR."}]
        body = {
            "model": _MODEL_ID, "messages": [{"role": "user", "content": content}], "max_tokens": tokens,
            "stop_on_loop": False,
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1800)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        except OSError as error:
            raise BenchError(f"the server did not answer: {error}; {' | '.join(self._lines[-3:])}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise BenchError(f"the server answered {response.status}: {answer}")
        if (made := answer["usage"]["completion_tokens"]) != tokens:
            raise BenchError(f"a page ended after {made} tokens instead of {tokens}")
