"""Runs ``fetch`` in a process of its own for each call: the hub library reads its environment when imported."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.export.fake_hubs import FakeHubs

WEIGHTS = random.Random(7).randbytes(5_000_000)
OLD_WEIGHTS = random.Random(8).randbytes(70_000)
FILES = {
    "config.json": b'{"model_type": "deepseek_vl_v2"}',
    "model-00001-of-000001.safetensors": WEIGHTS,
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "tokenizer.json": b"{}" * 500,
    "README.md": b"not wanted",
    "modeling.py": b"not wanted either",
    "assets/other.safetensors": b"nor is this",
}
WANTED = {"config.json", "model-00001-of-000001.safetensors", "model.safetensors.index.json", "tokenizer.json"}
SHARD = "model-00001-of-000001.safetensors"

PROGRAM = """
import json, sys, threading
from pathlib import Path
import export.download
from export.export_errors import ExportError
from export.fetching import fetch
export.download._RETRY_WAIT_S = 0.001
said = []
arguments = json.loads(sys.argv[1])
try:
    found = fetch(report=said.append, cache=Path(sys.argv[2]), **arguments)
    answer = {"folder": str(found.folder), "name": found.name, "revision": found.revision, "origin": found.origin}
except ExportError as error:
    answer = {"error": str(error)}
print(json.dumps(answer | {"said": said}))
"""


class Runner:
    """Calls ``fetch`` in a fresh process, with the fake hubs in its environment and a home of its own."""

    def __init__(self, hubs: FakeHubs, home: Path) -> None:
        self.hubs, self.home = hubs, home
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MODELSCOPE_"))},
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": hubs.url,
            "MODELSCOPE_ENDPOINT": hubs.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def start(self, source: str = "acme/ocr", **arguments: Any) -> subprocess.Popen[str]:
        variables = {name: value for name, value in arguments.items() if name.isupper()}
        arguments = {name: value for name, value in arguments.items() if not name.isupper()}
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps({"source": source, **arguments}), str(self.home / "cache")],
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, source: str = "acme/ocr", **arguments: Any) -> dict[str, Any]:
        process = self.start(source, **arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        self.stderr = err
        answer: dict[str, Any] = json.loads(out)
        return answer

    def blob(self, digest: str) -> Path:
        return self.home / "hf" / "hub" / "models--acme--ocr" / "blobs" / digest


def assert_whole(answer: dict[str, Any], files: dict[str, bytes] = FILES) -> None:
    assert "error" not in answer, answer["error"]
    folder = Path(answer["folder"])
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {"listing.json"} == WANTED
    for name in WANTED:
        assert (folder / name).read_bytes() == files[name], name


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
