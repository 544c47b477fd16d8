"""JSON, as ``tools/docs/result.schema.json`` describes it: a document as one object, or as one object a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .result import SCHEMA_VERSION, PageResult
from .text import TextFile

_OF_EACH_LINE = ("document", "page_count", "model")  # keys of the head


class JsonWriter:
    """One object with a page on each line of ``pages``; only one page is in memory."""

    def __init__(self, file: TextFile) -> None:
        self._file = file
        self._separator = ""

    def begin(self, head: Mapping[str, Any]) -> None:
        head = {"schema_version": SCHEMA_VERSION, **head}
        fields = "".join(f"{_dump(key)}: {_dump(value)},\n" for key, value in head.items())
        self._file.write("{\n" + fields + '"pages": [')

    def page(self, result: PageResult) -> None:
        self._file.write(f"{self._separator}\n{_dump(result.to_json())}")
        self._separator = ","

    def end(self) -> None:
        self._file.write("\n]\n}\n")
        self._file.flush()


class JsonLinesWriter:
    """A page a line; each has its document's name and other keys of the head."""

    def __init__(self, file: TextFile) -> None:
        self._file = file

    def begin(self, head: Mapping[str, Any]) -> None:
        self._head = {"schema_version": SCHEMA_VERSION, **{key: head[key] for key in _OF_EACH_LINE if key in head}}

    def page(self, result: PageResult) -> None:
        self._file.write(_dump({**self._head, **result.to_json()}) + "\n")

    def end(self) -> None:
        self._file.flush()


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
