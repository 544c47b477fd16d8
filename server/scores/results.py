"""Readings of documents, from the files that ``ocr-onnx read`` and others write: JSON, Markdown, plain text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from models.model_errors import InvalidInput

ENDINGS = (".json", ".jsonl", ".md", ".txt")  # in order: the first of a document's files is taken

_PAGE = re.compile(r"^<!-- page [0-9]+(?: could not be read: .*)? -->$", re.MULTILINE)
_OWN_FILES = ("manifest.json",)  # files in a folder of results that are no results


@dataclass(frozen=True)
class DocumentReading:
    """pages : Markdown of each page in order; None: the file has no marks of pages, and counts as one."""

    pages: tuple[str, ...]


def find_readings(place: Path) -> dict[str, Path]:
    """The documents of a folder, or of a file, by name: the path without its ending.

    Raises
    ------
    InvalidInput
        when there are none.
    """
    if place.is_file():
        return {"": place}
    files = [file for file in sorted(place.rglob("*")) if file.suffix in ENDINGS and file.name not in _OWN_FILES]
    found: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: ENDINGS.index(file.suffix)):
        found.setdefault(str(file.relative_to(place).with_suffix("")), file)
    if not found:
        raise InvalidInput(f"{place} has no results; there should be files that end in {', '.join(ENDINGS)}")
    return dict(sorted(found.items()))


def load_reading(file: Path) -> DocumentReading:
    """Read one document's file.

    Raises
    ------
    InvalidInput
        for a file that cannot be read, or has another format.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            return DocumentReading(tuple(_markdown(page) for page in json.loads(text)["pages"]))
        if file.suffix == ".jsonl":
            return DocumentReading(tuple(_markdown(json.loads(line)) for line in text.splitlines() if line.strip()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{file} is no result of ocr-onnx read: {error}") from error
    if file.suffix == ".txt":
        return DocumentReading(tuple(text.split("\f")))
    pages = _PAGE.split(text)
    return DocumentReading(tuple(pages[1:] if len(pages) > 1 and not pages[0].strip() else pages))


def _markdown(page: dict[str, object]) -> str:
    text = page.get("markdown", "")
    if not isinstance(text, str):
        raise TypeError(f"a page's markdown is a {type(text).__name__}")
    return text
