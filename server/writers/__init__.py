"""Writers of results: a module for each format, and the table of formats.

A writer gets one page after the other, in order, so that a document of a thousand pages takes the memory of one page.
Used by the command line for files, and by the server for downloads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from .as_json import JsonLinesWriter, JsonWriter
from .material import Material
from .result import CUT_OFF, SCHEMA_VERSION, PageResult, page_blocks
from .text import MarkdownWriter, TextWriter

__all__ = [
    "CUT_OFF",
    "FORMATS",
    "INSTALL",
    "SCHEMA_VERSION",
    "Format",
    "Material",
    "PageResult",
    "Writer",
    "page_blocks",
]


class Writer(Protocol):
    """Writes one document: ``begin``, then ``page`` for each in order, then ``end``."""

    def begin(self, head: Mapping[str, Any]) -> None:
        """head : facts about the whole document."""

    def page(self, result: PageResult) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True)
class Format:
    """One format of ``--format``."""

    ending: str  # ending of its files, without the first dot
    write: Callable[[Any, Material], Writer]  # makes a writer of a document for a file of text or of bytes
    links: bool = False  # links figures, which are cut out to images/
    shows: bool = False  # its pages of a picture are the picture itself
    binary: bool = False
    needs: tuple[str, ...] = ()  # modules that a plain installation may not have

    def missing(self) -> list[str]:
        """Modules of this format that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


def _plain(make: Callable[[Any], Writer]) -> Callable[[Any, Material], Writer]:
    """The maker of a writer that needs only texts."""
    return lambda file, material: make(file)


def _of(module: str, name: str) -> Callable[[Any, Material], Writer]:
    """The maker of a writer whose packages are imported on use."""

    def make(file: Any, material: Material) -> Writer:
        writer: Writer = getattr(import_module(f".{module}", __package__), name)(file, material)
        return writer

    return make


INSTALL = "pip install 'ocr-onnx[formats]'"
_RENDERING = ("latex2mathml", "lxml", "markdown_it", "mdit_py_plugins", "nh3")

FORMATS: Mapping[str, Format] = {
    "md": Format("md", _plain(MarkdownWriter), links=True),
    "json": Format("json", _plain(JsonWriter), links=True),
    "jsonl": Format("jsonl", _plain(JsonLinesWriter), links=True),
    "txt": Format("txt", _plain(TextWriter)),
    "html": Format("html", _of("page_file", "HtmlWriter"), needs=_RENDERING),
    "docx": Format("docx", _of("word", "WordWriter"), binary=True, needs=(*_RENDERING, "docx", "mathml2omml")),
    "xlsx": Format("xlsx", _of("sheets", "XlsxWriter"), binary=True, needs=("openpyxl",)),
    "csv": Format("csv", _of("sheets", "CsvWriter")),
    "hocr": Format("hocr", _of("hocr", "HocrWriter")),
    "alto": Format("alto.xml", _of("alto", "AltoWriter")),
    "pdf": Format("pdf", _of("pdf", "PdfWriter"), shows=True, binary=True),
    "pdf-a": Format("pdf", _of("pdf", "PdfAWriter"), shows=True, binary=True),
}
