"""Pages that have been read are written by others than those who read, and count when they are written."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from server.command.command_errors import CommandFailed
from server.command.keeping import Keeping, tell
from server.command.plan import DocumentPlan
from server.command.progress import Progress
from server.command.source import DocumentSource
from server.writers import PageResult

PATIENCE = 20  # seconds


class Disk:
    """Writes a page when it is allowed to; some it refuses."""

    def __init__(self, refused: tuple[int, ...] = ()) -> None:
        self.refused = refused
        self.allowed = {page: threading.Event() for page in range(1, 10)}
        self.settled: list[int] = []

    def put(self, plan: DocumentPlan, result: PageResult, made: Any) -> None:
        assert self.allowed[result.page].wait(PATIENCE)
        if result.page in self.refused:
            raise OSError(28, "No space left on device")

    def settle(self, plan: DocumentPlan, result: PageResult) -> None:
        self.settled.append(result.page)


def keeping(disk: Disk, pages: int) -> tuple[Keeping[str], list[Any]]:
    plan = DocumentPlan(DocumentSource(Path("a.pdf"), Path("a.pdf")), "a")
    kept: Keeping[str] = Keeping(disk, Progress(0, quiet=True))
    return kept, [kept.add("a", plan, PageResult(page, "done"), {}) for page in range(1, pages + 1)]


def test_a_page_counts_when_it_is_written_and_in_the_order_of_its_coming() -> None:
    disk = Disk()
    kept, written = keeping(disk, 3)
    assert (list(kept.settle(3)), disk.settled) == ([], [])
    disk.allowed[2].set()
    written[1].result(PATIENCE)
    assert (list(kept.settle(3)), kept.pages) == ([], 3)  # the first one is not there
    disk.allowed[1].set()
    written[0].result(PATIENCE)
    assert [result.page for _, _, result in kept.settle(3)] == [1, 2] == disk.settled
    disk.allowed[3].set()
    assert [result.page for _, _, result in kept.settle(0)] == [3]
    kept.close()


def test_no_more_pages_than_it_is_told_are_on_their_way() -> None:
    disk = Disk()
    kept, _ = keeping(disk, 4)
    threading.Timer(0.05, lambda: [disk.allowed[page].set() for page in (1, 2)]).start()
    assert [result.page for _, _, result in kept.settle(2)] == [1, 2]
    for event in disk.allowed.values():
        event.set()
    kept.close()


def test_a_page_that_is_refused_is_not_noted_and_those_behind_it_are() -> None:
    disk = Disk(refused=(2,))
    kept, _ = keeping(disk, 3)
    for event in disk.allowed.values():
        event.set()
    with pytest.raises(CommandFailed, match=r"page 2 of a\.pdf cannot be written: .*No space left"):
        list(kept.settle(0))
    assert [result.page for _, _, result in kept.settle(0)] == [3]
    assert disk.settled == [1, 3]
    kept.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("a.pdf cannot be read (it ends early)", "a.pdf, page 2: cannot be read (it ends early)"),
        ("page 2 of a.pdf cannot be drawn: too long", "page 2 of a.pdf cannot be drawn: too long"),
        ("page 2 of a.pdf.bak cannot be drawn", "a.pdf, page 2: page 2 of a.pdf.bak cannot be drawn"),
        ("the model failed", "a.pdf, page 2: the model failed"),
    ],
)
def test_a_failed_page_is_told_with_its_document_once(
    capsys: pytest.CaptureFixture[str], error: str, said: str
) -> None:
    plan = DocumentPlan(DocumentSource(Path("a.pdf"), Path("a.pdf")), "a")
    tell(plan, PageResult(2, "failed", error))
    assert capsys.readouterr().err == f"failed: {said}\n"
