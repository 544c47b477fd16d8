"""The plan of a run: for each document its pages, and which pages are still to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..writers import CUT_OFF
from .source import DocumentSource


@dataclass
class DocumentPlan:
    """One document in a run."""

    source: DocumentSource
    output: str  # name of the results, see inputs.output_names
    version: str = ""  # changes when the document does
    fingerprint: str = ""  # of the document and of all settings that decide how it is read
    password: str = field(default="", repr=False)  # password of the document
    page_count: int = 0  # of the document
    pages: Sequence[int] = ()  # from 0: pages that were asked for
    todo: Sequence[int] = ()  # from 0: pages to be read now
    error: str | None = None  # the document cannot be opened
    failed: int = 0  # pages that failed, in this run or an earlier one
    cut_off: dict[str, int] = field(default_factory=dict)  # number of pages by their end in writers.CUT_OFF
    whole: bool = False  # an earlier run has published all results
    left: int = 0  # pages that an interrupted run has left
    warned: set[str] = field(default_factory=set)  # warnings of pages that have been logged

    def read_whole(self, fingerprint: str) -> None:
        """Read all pages once more, even finished ones: they are read together."""
        self.todo, self.fingerprint = self.pages, fingerprint
        self.failed = self.left = 0
        self.cut_off = {}

    def count_cut_off(self, finish_detail: str | None) -> None:
        """Count a page whose text was cut off."""
        if finish_detail in CUT_OFF:
            self.cut_off[finish_detail] = self.cut_off.get(finish_detail, 0) + 1
