"""``ocr-onnx compare``: how near one reading of documents is to another."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.model_errors import InvalidInput
from server.scores import INSTALL, NEEDS

from .command_errors import CommandFailed, UsageError
from .progress import say

if TYPE_CHECKING:
    from server.scores.page import Comparison

DESCRIPTION = """Compare readings of the same documents: B with A, which is taken for the truth.

A and B are results of ocr-onnx read (or of another program): files or folders of JSON, Markdown or plain text.
Documents of folders are paired by their names. Told are characters and words that differ, the normalised edit
distance, the similarity of tables (TEDS, with the cells' text and of the structure alone) and how far the order of
reading differs: 0 is the same order, as is 0 wrong characters and a TEDS of 1."""

EXAMPLES = """examples:
  ocr-onnx compare truth.md read.md
  ocr-onnx compare before/ after/ --json > differences.json"""

_COLUMNS = (
    ("character_error_rate", "CER"), ("word_error_rate", "WER"), ("edit_distance", "edit"), ("teds", "TEDS"),
    ("teds_structure", "TEDS-S"), ("reading_order", "order"),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("truth", type=Path, metavar="A", help="what should have been read: a file or a folder")
    parser.add_argument("read", type=Path, metavar="B", help="what was read")
    parser.add_argument("--json", action="store_true", default=False, help="all figures as JSON, for programs")


def run(given: Mapping[str, Any]) -> int:
    """Run the command. Returns 0, or 1 when documents of A are missing from B."""
    require_packages()
    from server.scores.results import find_readings

    truth, read = given["truth"].expanduser(), given["read"].expanduser()
    for place in (truth, read):
        if not place.exists():
            raise UsageError(f"{place} is not there")
    if truth.is_file() != read.is_file():
        raise UsageError(f"{truth} and {read} are a file and a folder; compare two of a kind")
    try:
        ours, theirs = find_readings(truth), find_readings(read)
        documents = {name: _compared(ours[name], theirs[name]) for name in ours if name in theirs}
    except InvalidInput as error:
        raise CommandFailed(str(error)) from error
    missing = sorted(ours.keys() - theirs.keys())
    if not documents:
        raise CommandFailed(f"no document of {truth} has one of the same name in {read}")
    _tell({name or truth.name: one for name, one in documents.items()}, missing, as_json=given["json"])
    for name in missing:
        say(f"warning: {name} is missing from {read}")
    return 1 if missing else 0


def require_packages() -> None:
    """Raises CommandFailed, naming the remedy, where packages that scores need are missing."""
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise CommandFailed(f"this needs {', '.join(missing)}; install them with: {INSTALL}")


def _compared(truth: Path, read: Path) -> Comparison:
    """Compare page by page where both have as many pages; else whole texts."""
    from server.scores.page import Comparison, compare_page
    from server.scores.results import load_reading

    ours, theirs = load_reading(truth).pages, load_reading(read).pages
    if len(ours) != len(theirs):
        ours, theirs = ("\n\n".join(ours),), ("\n\n".join(theirs),)
    return sum((compare_page(*pair) for pair in zip(ours, theirs, strict=True)), Comparison())


def _tell(documents: Mapping[str, Comparison], missing: list[str], *, as_json: bool) -> None:
    from server.scores.page import Comparison

    rows = {name: one.to_json() for name, one in documents.items()}
    total = sum(documents.values(), Comparison()).to_json()
    if as_json:
        json.dump({"documents": rows, "total": total, "missing": missing}, sys.stdout, ensure_ascii=False, indent=2)
        print()
        return
    if len(rows) > 1:
        rows[f"all {len(rows)}"] = total
    width = max(len("document"), *(len(name) for name in rows))
    print(f"{'document':{width}}  " + "  ".join(f"{title:>7}" for _, title in _COLUMNS))
    for name, row in rows.items():
        print(f"{name:{width}}  " + "  ".join(f"{_figure(row[key]):>7}" for key, _ in _COLUMNS))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
