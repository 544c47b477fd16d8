"""Every file of a folder through the command and through the API: answers and clear errors, and nothing else.

    python -m tools.corpus DIR                     with the built-in model, exported if it has not been yet
    python -m tools.corpus DIR --pages 1-3 --page-timeout 5

Files that other libraries test their decoders with are good for this, damaged and hostile ones above all. Whatever its
name, each file is given to ``ocr-onnx read``, and sent as a ``file`` part and as an image part to a server of its own.
An answer is text; a clear error is a page or a document that failed with a reason, or status 400 or 413 with a message.
All else is a failure, and the exit code 1: an internal error, a traceback, another status, no answer, a file of which
nothing is said, a process that is left.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

TOGETHER = 4  # requests
ANSWER_SECONDS = 300.0  # for one request
CLEAR = (400, 413)


@dataclass
class Tally:
    """What became of the files on one way."""

    way: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")  # seconds, file

    def print(self) -> None:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common())
        print(f"{self.way}: {counts or 'nothing'}; {len(self.failures)} failures")
        if self.slowest[1]:
            print(f"  slowest: {self.slowest[0]:.1f} s, {self.slowest[1]}")
        for failure in self.failures:
            print(f"  FAILED {failure}")


def read(files: Sequence[Path], folder: Path, model: Sequence[str], pages: str) -> Tally:
    """All files in one run of the command."""
    tally = Tally("read")
    command = [sys.executable, "-m", "server.command", "read", *map(str, files), "-o", str(folder), "--pages", pages,
               "--quiet", "--max-new-tokens", "1", "--format", "txt", *model]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said: dict[str, list[str]] = {}
    for line in ended.stderr.splitlines():
        if line.startswith("failed: "):
            name = max((str(file) for file in files if str(file) in line), key=len, default="")
            said.setdefault(name, []).append(line)
            if "internal error" in line:
                tally.failures.append(line)
    if "Traceback" in ended.stderr:
        tally.failures.append(ended.stderr[-2000:])
    if ended.returncode not in (0, 1):
        tally.failures.append(f"exit code {ended.returncode}: {ended.stderr[-500:]}")
    manifest = (folder / "ocr-run.jsonl").read_text(encoding="utf-8") if folder.exists() else ""
    read_files = {line["document"] for line in map(json.loads, manifest.splitlines()) if line.get("state") == "done"}
    for file in files:
        outcome = "read" if str(file) in read_files else "clear errors" if str(file) in said else None
        if outcome is None:
            tally.failures.append(f"{file}: nothing was said of it")
        else:
            tally.outcomes[outcome] += 1
    return tally


@contextmanager
def serving(model: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """A server; its address, and its log so far."""
    command = [sys.executable, "-m", "server", "--host", "127.0.0.1", "--port", "0", *model]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    lines: list[str] = []
    listening = threading.Event()

    def follow() -> None:
        assert server.stdout is not None
        for line in server.stdout:
            lines.append(line.rstrip())
            if "listening on" in line:
                listening.set()
        listening.set()

    threading.Thread(target=follow, daemon=True).start()
    try:
        listening.wait()
        address = next((found[0] for line in lines if (found := re.search(r"http://\S+", line))), None)
        if address is None:
            raise SystemExit("the server did not start:\n" + "\n".join(lines[-20:]))
        yield address, lines
    finally:
        server.terminate()
        server.wait(60)


def ask(address: str, model: str, file: Path, way: str, pages: str) -> tuple[str, str | None]:
    """Send one file; its outcome, and what is wrong with that."""
    url = f"data:application/octet-stream;base64,{base64.b64encode(file.read_bytes()).decode()}"
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}}
    body: dict[str, Any] = {"model": model, "max_tokens": 1}
    if way == "file":
        part = {"type": "file", "file": {"filename": file.name, "file_data": url}}
        body["ocr"] = {"pages": pages}
    body["messages"] = [{"role": "user", "content": [part]}]
    try:
        answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=ANSWER_SECONDS)
        document = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        return "no answer", f"{file}: {type(error).__name__}: {error}"
    if answer.status_code == 200:
        return "read", None
    message = document.get("error", {}).get("message", "")
    if answer.status_code in CLEAR and message and "internal error" not in message:
        return "clear errors", None
    return f"status {answer.status_code}", f"{file}: {answer.status_code} {message}"


def send(files: Sequence[Path], address: str, model: str, way: str, pages: str) -> Tally:
    """All files as one kind of part."""
    tally = Tally(f"API, {way} part")

    def one(file: Path) -> tuple[Path, float, str, str | None]:
        started = time.monotonic()
        outcome, problem = ask(address, model, file, way, pages)
        return file, time.monotonic() - started, outcome, problem

    with ThreadPoolExecutor(TOGETHER) as pool:
        for file, seconds, outcome, problem in pool.map(one, files):
            tally.outcomes[outcome] += 1
            tally.slowest = max(tally.slowest, (seconds, str(file)))
            if problem is not None:
                tally.failures.append(problem)
    return tally


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when anything was neither an answer nor a clear error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--model", default="tiny-ocr", metavar="ID")
    parser.add_argument("--pages", default="1", help="of each document (default: 1)")
    parser.add_argument("--page-timeout", default="10", metavar="S", help="processor seconds of a page (default: 10)")
    args = parser.parse_args(argv)
    files = sorted(path for path in args.folder.resolve().rglob("*") if path.is_file())
    if not files:
        parser.error(f"{args.folder} holds no file")
    model = ["--model", args.model, "--page-timeout", args.page_timeout]
    with tempfile.TemporaryDirectory() as folder:
        tallies = [read(files, Path(folder) / "out", model, args.pages)]
    with serving(model) as (address, lines):
        tallies += [send(files, address, args.model, way, args.pages) for way in ("file", "image")]
        health = httpx.get(f"{address}/health", timeout=ANSWER_SECONDS).status_code
    log = Tally("the server", Counter({f"health {health}": 1}))
    log.failures += [line for line in lines if "Traceback" in line or "internal error" in line]
    print(f"{len(files)} files")
    for tally in [*tallies, log]:
        tally.print()
    return 1 if any(tally.failures for tally in [*tallies, log]) else 0


if __name__ == "__main__":
    sys.exit(main())
