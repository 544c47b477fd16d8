"""What tools.corpus makes of a run: an outcome for each file, and failures where there was neither text nor reason."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tools.corpus import FAILURES, outcome_of, plain, said_of, unpacked


def page(**fields: Any) -> dict[str, Any]:
    return {"type": "page", "document": "a", "state": "done", "error": None, **fields}


def document(**fields: Any) -> dict[str, Any]:
    return {"type": "document", "document": "a", "state": "done", **fields}


@pytest.mark.parametrize(
    ("lines", "outcome"),
    [
        ([page(), document()], "read"),
        ([page(), page(warnings=["it is odd"]), document()], "read with warnings"),
        ([document(state="failed", error="a cannot be read (damaged)")], "refused"),
        ([page(), page(state="failed", error="page 2 of a is damaged"), document()], "refused"),
        ([page(error="page 1 of a cannot be drawn: it took more than 10 s; leave it out"), document()], "timed out"),
        ([page(error="page 1 of a cannot be drawn: it was not done after 40 s"), document()], "timed out"),
        ([page(error="the program that draws it crashed, or ran out of memory"), document()], "crash"),
        ([document(error="a cannot be read: an internal error")], "internal error"),
        ([], "nothing said"),
        ([page()], "nothing said"),  # the run ended before the document did
    ],
)
def test_a_file_has_the_worst_outcome_of_its_lines(lines: list[dict[str, Any]], outcome: str) -> None:
    assert outcome_of(lines) == outcome
    assert (outcome in FAILURES) == (outcome in ("crash", "internal error", "nothing said"))


def test_files_of_one_kind_are_said_in_one_line() -> None:
    said = {plain(reason, Path(name)) for name in ("/x/a.jp2", "/y/b.jp2") for reason in said_of(
        page(error=f"{name} cannot be read (not a known format); documents are PDF, PNG", warnings=["it is odd"])
    )}  # fmt: skip
    assert said == {"it cannot be read (not a known format)", "it is odd"}


def test_folders_stay_where_they_are_and_archives_are_unpacked_without_leaving_their_folder(tmp_path: Path) -> None:
    assert unpacked(tmp_path, tmp_path / "new") == tmp_path
    for name in ("good.txt", "../bad.txt"):
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
            entry = tarfile.TarInfo(name)
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"text"))
        if name == "good.txt":
            assert (unpacked(tmp_path / "a.tar.gz", tmp_path / "new") / name).read_text() == "text"
        else:
            with pytest.raises(tarfile.OutsideDestinationError):
                unpacked(tmp_path / "a.tar.gz", tmp_path / "new")
