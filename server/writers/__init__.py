"""What a document's results look like: a file here for each format, and the table of all of them.

A writer is given one page after the other, in order, so that a document of a thousand pages takes the memory of one.
The command line writes files with them; what the server offers for downloads is made by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .as_json import JsonLinesWriter, JsonWriter
from .result import CUT_OFF, SCHEMA_VERSION, PageResult
from .text import MarkdownWriter, TextFile, TextWriter

__all__ = ["CUT_OFF", "FORMATS", "SCHEMA_VERSION", "Format", "PageResult", "Writer"]


class Writer(Protocol):
    """Writes one document: ``begin``, then ``page`` for each in order, then ``end``."""

    def begin(self, head: Mapping[str, Any]) -> None:
        """head : what is to be said of the whole document."""

    def page(self, result: PageResult) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True)
class Format:
    """One of ``--format``."""

    ending: str  # of its files, without the first point
    write: Callable[[TextFile], Writer]  # begins a document in a file
    links: bool = False  # it links the figures that are cut out to images/


FORMATS: Mapping[str, Format] = {
    "md": Format("md", MarkdownWriter, links=True),
    "json": Format("json", JsonWriter, links=True),
    "jsonl": Format("jsonl", JsonLinesWriter, links=True),
    "txt": Format("txt", TextWriter),
}
