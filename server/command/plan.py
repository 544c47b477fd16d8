"""What there is to do: for each document its pages, and those of them that still have to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..writers import CUT_OFF
from .source import Source


@dataclass
class DocumentPlan:
    """One document in a run."""

    source: Source
    output: str  # name of its results, see inputs.output_names
    version: str = ""  # changes when the document does
    fingerprint: str = ""  # of the document and of all that decides how it is read
    password: str = field(default="", repr=False)  # which opens the document
    page_count: int = 0  # of the document
    pages: Sequence[int] = ()  # from 0: those that were asked for
    todo: Sequence[int] = ()  # from 0: those to be read now
    error: str | None = None  # it cannot be opened
    failed: int = 0  # pages that failed, in this run or an earlier one
    cut_off: dict[str, int] = field(default_factory=dict)  # how many pages ended in which of writers.CUT_OFF
    whole: bool = False  # its results were all published by an earlier run
    left: int = 0  # pages that nobody has dealt with: an interrupted run's
    warned: set[str] = field(default_factory=set)  # warnings of its pages that have been said

    def read_whole(self, fingerprint: str) -> None:
        """Read all its pages once more, whatever an earlier run has finished: they are read together."""
        self.todo, self.fingerprint = self.pages, fingerprint
        self.failed = self.left = 0
        self.cut_off = {}

    def count_cut_off(self, finish_detail: str | None) -> None:
        """Note how a page's text ended, when that lost some of it."""
        if finish_detail in CUT_OFF:
            self.cut_off[finish_detail] = self.cut_off.get(finish_detail, 0) + 1
