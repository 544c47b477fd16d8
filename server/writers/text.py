"""Markdown and plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from models.grounding import to_markdown

from .result import PageResult


class TextFile(Protocol):
    """A file that takes text."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...


class MarkdownWriter:
    """Writes Markdown, with comments for beginnings of pages, failed pages and warnings."""

    def __init__(self, file: TextFile) -> None:
        self._file = file
        self._first = True

    def begin(self, head: Mapping[str, Any]) -> None:
        self._single = head["page_count"] == 1

    def page(self, result: PageResult) -> None:
        separator = "" if self._first else "\n"
        self._first = False
        if result.state == "failed":
            self._file.write(separator + _comment(f"page {result.page} could not be read: {result.error}") + "\n")
            return
        comments = [] if self._single else [_comment(f"page {result.page}")]
        if result.doubtful and result.confidence is not None:
            comments.append(_comment(f"page {result.page} is doubtful: confidence {result.confidence.mean:.3f}"))
        comments += [_comment(f"page {result.page}: {warning}") for warning in result.warnings]
        self._file.write(separator + "\n\n".join(filter(None, [*comments, result.markdown()])) + "\n")

    def end(self) -> None:
        self._file.flush()


def _comment(text: str) -> str:
    """A comment; two hyphens in its text would end it."""
    return f"<!-- {' '.join(text.split()).replace('--', '- -')} -->"


class TextWriter:
    """Writes pages separated by form feeds, as pdftotext does; a failed page is empty."""

    def __init__(self, file: TextFile) -> None:
        self._file = file
        self._first = True

    def begin(self, head: Mapping[str, Any]) -> None: ...

    def page(self, result: PageResult) -> None:
        self._file.write("" if self._first else "\f")
        self._first = False
        text = to_markdown(result.text)
        self._file.write(f"{text}\n" if text else "")

    def end(self) -> None:
        self._file.flush()
