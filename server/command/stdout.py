"""Writes the one document that is read without ``-o`` to standard output, page by page in order."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Mapping
from typing import IO, Any

from tqdm import tqdm

from ..writers import FORMATS, Material, PageResult, Writer
from ..writers.figures import Pictures
from .plan import DocumentPlan


class _Terminal:
    """Standard output, written without tearing a progress bar on the same terminal."""

    def write(self, text: str) -> None:
        with tqdm.external_write_mode(sys.stdout, nolock=False):
            sys.stdout.write(text)

    def flush(self) -> None:
        sys.stdout.flush()


class Printer:
    """Takes pages like ``folder.OutputFolder``; pages that come early wait for their turn."""

    def __init__(self, form: str, material: Material, put_together: IO[bytes]) -> None:
        """put_together : a temporary file for a binary format, whose writer seeks."""
        if isinstance(sys.stdout, io.TextIOWrapper):  # UTF-8 in every locale: a page may hold any character
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        self._bytes = put_together if FORMATS[form].binary else None
        self._writer: Writer = FORMATS[form].write(self._bytes or _Terminal(), material)
        self._waiting: dict[int, PageResult] = {}
        self._left: list[int] = []  # numbers of the pages that are still to be written
        self._begun = False

    def begin(self, plan: DocumentPlan, head: Mapping[str, Any]) -> None:
        """Write the beginning of the format, before the pages."""
        self._left = [index + 1 for index in plan.pages]
        self._begun = True
        self._writer.begin(head)

    def close(self) -> None:
        """Write the end of the format, after an interrupted run too: half a JSON object is of no use. Idempotent."""
        if self._begun:
            self._begun = False
            self._writer.end()
            if self._bytes is not None:
                self._bytes.seek(0)
                shutil.copyfileobj(self._bytes, sys.stdout.buffer)
                sys.stdout.flush()

    # See run.Sink.

    def pictures(self, plan: DocumentPlan) -> Pictures:
        return Pictures(None, None)

    def put(self, plan: DocumentPlan, result: PageResult, made: Mapping[str, bytes]) -> None:
        """Does nothing: pages are written when they are settled."""

    def settle(self, plan: DocumentPlan, result: PageResult) -> None:
        if result.state == "failed":
            plan.failed += 1
        plan.count_cut_off(result.finish_detail)
        self._waiting[result.page] = result
        while self._left and self._left[0] in self._waiting:
            self._writer.page(self._waiting.pop(self._left.pop(0)))

    def finish(self, plan: DocumentPlan, head: Mapping[str, Any], material: Material) -> None:
        self.close()

    def fail(self, plan: DocumentPlan) -> None:
        """Does nothing: the message is on standard error."""
