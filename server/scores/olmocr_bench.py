"""olmOCR-bench: its unit tests of pages, run by its authors' own package.

Each line of its ``*.jsonl`` files is a test of one page of one PDF. A file's score is the share of its tests that pass,
the whole score the mean over files; a PDF without a baseline test gets one, for being text at all.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

from models.model_errors import InvalidInput

INSTALL = "pip install 'olmocr[bench]'"


@dataclass(frozen=True)
class Case:
    """One test. run : takes a page's Markdown; returns whether it passes, and why not."""

    group: str
    id: str
    document: str  # path of the PDF below pdfs/, with ending
    page: int  # from 1
    test: Any

    def passes(self, markdown: str | None) -> bool:
        """Whether the page passes; a page that was not read fails."""
        return markdown is not None and bool(self.test.run(markdown)[0])


def data_folder(folder: Path) -> Path:
    """The folder of tests and ``pdfs`` in a copy of the data set: ``bench_data``, or the copy itself.

    Raises
    ------
    InvalidInput
        when neither folder has them.
    """
    for place in (folder, folder / "bench_data"):
        if (place / "pdfs").is_dir() and any(place.glob("*.jsonl")):
            return place
    raise InvalidInput(f"{folder} is no copy of olmOCR-bench: it has no *.jsonl beside a folder pdfs")


def load_cases(folder: Path) -> list[Case]:
    """The tests of a copy of the data set.

    Raises
    ------
    InvalidInput
        for a test that the package refuses, and where the package is not installed.
    """
    if find_spec("olmocr") is None:
        raise InvalidInput(f"olmOCR-bench is scored by its authors' package; install it with: {INSTALL}")
    from olmocr.bench.tests import BaselineTest, load_single_test

    cases = []
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                test = load_single_test(json.loads(line))
            except Exception as error:  # its own ValidationError, TypeError for fields, and what its renderer raises
                raise InvalidInput(f"{file.name}, line {number}: {error}") from error
            cases.append(Case(file.name, test.id, test.pdf, test.page, test))
    tested = {case.document for case in cases if case.test.type == "baseline"}
    for name in sorted({case.document for case in cases} - tested):
        test = BaselineTest(id=f"{name}_baseline", pdf=name, page=1, type="baseline")
        cases.append(Case("baseline", test.id, name, 1, test))
    return cases


def summary(cases: list[Case], pages: Mapping[tuple[str, int], str]) -> dict[str, Any]:
    """Scores by group, in percent, and the tests that failed. pages : Markdown by document and page."""
    passed: dict[str, list[bool]] = defaultdict(list)
    failed = []
    for case in cases:
        passed[case.group].append(case.passes(pages.get((case.document, case.page))))
        if not passed[case.group][-1]:
            failed.append(case.id)
    groups = {group: round(100 * mean(results), 2) for group, results in sorted(passed.items())}
    return {"tests": len(cases), "groups": groups, "score": round(mean(groups.values()), 2), "failed": failed}
