"""Real files of other projects through the command and through the API: answers and clear errors, and nothing else.

    python -m tools.corpus DIR|ARCHIVE...                 with the built-in model, exported if it has not been yet
    python -m tools.corpus pillow-13.0.0.tar.gz pypdf-7.1.1.tar.gz --reasons --only read

Files that other libraries test their decoders with are good for this, damaged and hostile ones above all: the source
distributions of Pillow and pypdf have a thousand. Whatever its name, each file is given to ``ocr-onnx read``, and sent
as a ``file`` part and as an image part to a server of its own. An answer is text, with warnings or without; a clear
error is a page or a document that was refused with a reason or took too long, or status 400 or 413 with a message.
All else is a failure, and the exit code 1: an internal error, a traceback, a worker that crashed, another status, no
answer, a file that no line names, a process that outlives the run, a run that does not end in time.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

TOGETHER = 4  # requests
ANSWER_SECONDS = 300.0  # for one request
CLEAR = (400, 413)
FAILURES = ("crash", "internal error", "nothing said")  # of outcomes
MARKS = {"crash": "crashed, or ran out of memory", "internal error": "internal error",
         "timed out": "it took more than|was not done after"}  # fmt: skip


@dataclass
class Tally:
    """What became of the files on one way."""

    way: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    reasons: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # what was said -> of which files
    slowest: tuple[float, str] = (0.0, "")  # seconds, file

    def print(self, *, reasons: bool = False) -> None:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common())
        print(f"{self.way}: {counts or 'nothing'}; {len(self.failures)} failures")
        if self.slowest[1]:
            print(f"  slowest: {self.slowest[0]:.1f} s, {self.slowest[1]}")
        for failure in self.failures:
            print(f"  FAILED {failure}")
        for said, files in sorted(self.reasons.items(), key=lambda one: -len(one[1])) if reasons else ():
            print(f"  {len(files):4} {said}: {', '.join(sorted({Path(file).name for file in files})[:4])}")


def read(files: Sequence[Path], folder: Path, model: Sequence[str], pages: str, seconds: float) -> Tally:
    """All files in one run of the command, which is ended after so many seconds."""
    tally = Tally("read")
    command = [sys.executable, "-m", "server.command", "read", *map(str, files), "-o", str(folder), "--pages", pages,
               "--quiet", "--max-new-tokens", "1", "--format", "txt", *model]  # fmt: skip
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)
        try:
            running.wait(seconds)
        except subprocess.TimeoutExpired:
            tally.failures.append(f"it was not done after {seconds:g} s")
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
        said.seek(0)
        errors = said.read()
    if "Traceback" in errors:
        tally.failures.append(errors[errors.index("Traceback") :][:2000])
    if running.returncode not in (0, 1):
        tally.failures.append(f"exit code {running.returncode}: {errors[-500:]}")
    left = set(re.findall(r"^left: (.+) has .+ none of --pages", errors, re.MULTILINE))
    ledger = folder / "ocr-run.jsonl"
    lines = [*map(json.loads, ledger.read_text(encoding="utf-8").splitlines())] if ledger.exists() else []
    for file in files:
        own = [line for line in lines if line.get("document") == str(file) and line["type"] in ("page", "document")]
        outcome = "left" if str(file) in left else outcome_of(own)
        tally.outcomes[outcome] += 1
        tally.slowest = max(tally.slowest, (sum(line.get("seconds", 0.0) for line in own), str(file)))
        for reason in {plain(reason, file) for line in own for reason in said_of(line)}:
            tally.reasons[reason].append(str(file))
        if outcome in FAILURES:
            tally.failures.append(f"{file}: {outcome}: {'; '.join(reason for line in own for reason in said_of(line))}")
    return tally


def outcome_of(lines: Sequence[Mapping[str, Any]]) -> str:
    """The outcome of a document by the lines of its run manifest: the worst of its pages."""
    errors = [line["error"] for line in lines if line.get("error")]
    for outcome, mark in MARKS.items():
        if any(re.search(mark, error) for error in errors):
            return outcome
    if errors:
        return "refused"
    if not any(line["type"] == "document" for line in lines):
        return "nothing said"
    return "read with warnings" if any(line.get("warnings") for line in lines) else "read"


def said_of(line: Mapping[str, Any]) -> list[str]:
    """Errors and warnings of a page or a document."""
    return [*filter(None, [line.get("error")]), *line.get("warnings", ())]


def plain(reason: str, file: Path) -> str:
    """What was said, without the file's name, so that files of one kind are one line."""
    return re.sub(r"; documents are .*", "", reason.replace(str(file), "it"))[:160]


def unpacked(given: Path, folder: Path) -> Path:
    """A folder as it is, or an archive unpacked below ``folder``."""
    if given.is_dir():
        return given.resolve()
    place = folder / given.name
    if zipfile.is_zipfile(given):
        with zipfile.ZipFile(given) as zipped:
            zipped.extractall(place)
    else:
        with tarfile.open(given) as packed:
            packed.extractall(place, filter="data")
    return place


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
    parser.add_argument("inputs", type=Path, nargs="+", metavar="DIR|ARCHIVE")
    parser.add_argument("--model", default="tiny-ocr", metavar="ID")
    parser.add_argument("--pages", default="1", help="of each document (default: 1)")
    parser.add_argument("--page-timeout", default="10", metavar="S", help="processor seconds of a page (default: 10)")
    parser.add_argument("--minutes", type=float, default=30.0, help="for the run of read (default: 30)")
    parser.add_argument("--only", choices=("read", "api"), help="one of the two ways (default: both)")
    parser.add_argument("--reasons", action="store_true", help="print what was said of files, by kind")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        roots = [unpacked(given, Path(folder) / "unpacked") for given in args.inputs]
        files = [path for root in roots for path in sorted(root.rglob("*")) if path.is_file()]
        if not files:
            parser.error(f"{', '.join(map(str, args.inputs))}: no file here")
        print(f"{len(files)} files")
        tallies = list(ways(args, files, Path(folder) / "out"))
    for tally in tallies:
        tally.print(reasons=args.reasons)
    return 1 if any(tally.failures for tally in tallies) else 0


def ways(args: argparse.Namespace, files: Sequence[Path], out: Path) -> Iterator[Tally]:
    """The tally of each way that was asked for."""
    model = ["--model", args.model, "--page-timeout", args.page_timeout]
    if args.only != "api":
        yield read(files, out, model, args.pages, args.minutes * 60)
    if args.only == "read":
        return
    with serving(model) as (address, lines):
        for way in ("file", "image"):
            yield send(files, address, args.model, way, args.pages)
        health = httpx.get(f"{address}/health", timeout=ANSWER_SECONDS).status_code
    log = Tally("the server", Counter({f"health {health}": 1}))
    log.failures += [line for line in lines if "Traceback" in line or "internal error" in line]
    yield log


if __name__ == "__main__":
    sys.exit(main())
