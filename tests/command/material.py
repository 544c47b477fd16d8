"""Documents whose pages say their number, and what a run left of them."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from PIL import Image

from server.command import run as run_module
from tests.command.conftest import Program, page_of
from tests.pdfs import scanned_pdf


def pdf(path: Path, *numbers: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(scanned_pdf([page_of(number) for number in numbers]))
    return path


def png(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    page_of(number).save(path)
    return path


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    """The run manifest's lines of one kind."""
    entries = [json.loads(line) for line in (out / "ocr-run.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["type"] == kind]


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


GROUNDED = (
    "<|ref|>image<|/ref|><|det|>[[0, 0, 499, 999]]<|/det|>\n"
    "<|ref|>text<|/ref|><|det|>[[500, 0, 999, 999]]<|/det|>\nWords\n"
    "<|ref|>image<|/ref|><|det|>[[0, 0, 499, 999], [900, 900, 900, 900]]<|/det|>\n"
)


def stop_at(ocr: Program, number: int) -> None:
    """Let the run be interrupted while it reads this page."""

    def script(seen: int, page: Image.Image) -> str:
        if seen == number:
            signal.raise_signal(signal.SIGINT)
            ocr.readers[-1].stop.wait(10)
            raise run_module.Interrupted
        return f"page {seen}"

    ocr.script = script
