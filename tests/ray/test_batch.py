"""Reading on a cluster of three nodes: nothing lost, nothing twice, whatever dies."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from server.command.command_errors import CommandFailed

from .conftest import StubReader, picture_pages, plan_of, read_with

pytestmark = pytest.mark.ray


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    entries = map(json.loads, (out / "ocr-run.jsonl").read_text().splitlines())
    return [entry for entry in entries if entry["type"] == kind]


@pytest.mark.cluster
def test_a_poisoned_page_is_recorded_and_all_others_are_read_once(three_nodes: Any, tmp_path: Path) -> None:
    plans = [plan_of(picture_pages(tmp_path / f"{name}.tif", 100 * number, 30), 30) for number, name in enumerate("ab")]
    read_with(StubReader(deadly=(7, 119)), plans, tmp_path / "out", actors=2)
    pages = lines(tmp_path / "out", "page")
    assert len(pages) == 60
    failed = sorted((page["output"], page["page"]) for page in pages if page["state"] == "failed")
    assert failed == [("a", 8), ("b", 20)]
    assert all("every process that read it died" in page["error"] for page in pages if page["state"] == "failed")
    for number, name in enumerate("ab"):
        texts = (tmp_path / f"out/{name}.txt").read_text().split("\f")
        lost = {"a": 7, "b": 19}[name]
        assert texts == ["" if page == lost else f"page {100 * number + page}\n" for page in range(30)]
    assert [plan.failed for plan in plans] == [1, 1]


@pytest.mark.cluster
def test_pages_of_a_node_that_is_killed_are_read_again_and_none_twice(three_nodes: Any, tmp_path: Path) -> None:
    plans = [plan_of(picture_pages(tmp_path / f"{number}.tif", 1000 * number, 100), 100) for number in range(4)]
    killed = threading.Event()

    def kill() -> None:
        while not (tmp_path / "out/ocr-run.jsonl").exists() or len(lines(tmp_path / "out", "page")) < 100:
            time.sleep(0.2)
        three_nodes.remove_node(three_nodes.list_all_nodes()[-1], allow_graceful=False)
        killed.set()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    read_with(StubReader(seconds=0.03), plans, tmp_path / "out", actors=4)
    assert killed.is_set()
    pages = lines(tmp_path / "out", "page")
    assert sorted((page["output"], page["page"]) for page in pages) == [
        (str(number), page) for number in range(4) for page in range(1, 101)
    ]
    for number in range(4):
        texts = (tmp_path / f"out/{number}.txt").read_text().split("\f")
        assert texts == [f"page {1000 * number + page}\n" for page in range(100)]


def test_a_model_that_cannot_be_loaded_ends_the_run_with_its_reason(three_nodes: Any, tmp_path: Path) -> None:
    plans = [plan_of(picture_pages(tmp_path / "a.tif", 0, 3), 3)]
    with pytest.raises(CommandFailed, match=r"on [0-9.]+: there is no such model"):
        read_with(StubReader(cannot_start="there is no such model"), plans, tmp_path / "out", actors=1)
    assert plans[0].left == 3
    assert not [thread for thread in threading.enumerate() if thread.name == "ray-data"]


@pytest.mark.cluster
def test_2000_pages_with_a_node_killed_half_way_none_lost_and_none_twice(three_nodes: Any, tmp_path: Path) -> None:
    plans = [plan_of(picture_pages(tmp_path / f"{number:02}.tif", 1000 * number, 100), 100) for number in range(20)]
    killed = threading.Event()

    def kill() -> None:
        while not (tmp_path / "out/ocr-run.jsonl").exists() or len(lines(tmp_path / "out", "page")) < 1000:
            time.sleep(0.2)
        three_nodes.remove_node(three_nodes.list_all_nodes()[-1], allow_graceful=False)
        killed.set()

    threading.Thread(target=kill, daemon=True).start()
    read_with(StubReader(seconds=0.05), plans, tmp_path / "out", actors=4, batch=8)
    assert killed.is_set()
    pages = sorted((page["output"], page["page"], page["state"]) for page in lines(tmp_path / "out", "page"))
    assert pages == [(f"{number:02}", page, "done") for number in range(20) for page in range(1, 101)]
    for number in range(20):
        texts = (tmp_path / f"out/{number:02}.txt").read_text().split("\f")
        assert texts == [f"page {1000 * number + page}\n" for page in range(100)]


def test_a_disk_that_refuses_ends_the_run_and_nothing_counts_as_read(tmp_path: Path) -> None:
    from server.command.progress import Progress
    from server.ray.batch import ClusterRun
    from server.ray.cluster import Pool
    from server.ray.reading import PageAnswer, ReadingJob
    from server.writers import PageResult

    class Full:
        settled = 0

        def put(self, *_: Any) -> None:
            raise OSError("No space left on device")

        def settle(self, *_: Any) -> None:
            self.settled += 1

    sink, plan = Full(), plan_of(tmp_path / "a.tif", 3)
    run = ClusterRun(
        ReadingJob(StubReader, ""), None, Pool(1, 1, 1, 0, 1), sink, lambda plan: {}, lambda plan: None,  # type: ignore[arg-type, return-value]
        Progress(0, quiet=True), threading.Event(), batch=1,
    )  # fmt: skip
    run.answers = lambda rows, how: iter(PageAnswer(0, PageResult(page, "done"), {}) for page in (1, 2, 2, 1, 3))  # type: ignore[method-assign]
    sink.pictures = lambda plan: None  # type: ignore[attr-defined]
    with pytest.raises(CommandFailed, match=r"page [123] of .* cannot be written: No space left"):
        run.read_all([plan])
    assert (plan.left, sink.settled) == (3, 0)


def test_answers_that_come_twice_count_once_and_a_document_is_published_when_all_is_kept(tmp_path: Path) -> None:
    from server.command.progress import Progress
    from server.ray.batch import ClusterRun
    from server.ray.cluster import Pool
    from server.ray.reading import PageAnswer, ReadingJob
    from server.writers import PageResult

    events: list[Any] = []

    class Slow:
        def put(self, plan: Any, result: PageResult, made: Any) -> None:
            time.sleep(0.02 * (4 - result.page))
            events.append(("put", result.page))

        def settle(self, plan: Any, result: PageResult) -> None:
            events.append(("settle", result.page))

        def finish(self, plan: Any, head: Any, material: Any) -> None:
            events.append(("finish", plan.output))

        def pictures(self, plan: Any) -> None: ...

    plan = plan_of(tmp_path / "a.tif", 3)
    run = ClusterRun(
        ReadingJob(StubReader, ""), None, Pool(1, 1, 1, 0, 1), Slow(), lambda plan: {}, lambda plan: None,  # type: ignore[arg-type, return-value]
        Progress(0, quiet=True), threading.Event(), batch=1,
    )  # fmt: skip
    run.answers = lambda rows, how: iter(PageAnswer(0, PageResult(page, "done"), {}) for page in (1, 2, 2, 1, 3))  # type: ignore[method-assign]
    run.read_all([plan])
    assert sorted(event for event in events if event[0] == "put") == [("put", 1), ("put", 2), ("put", 3)]
    assert [page for kind, page in events if kind == "settle"] == [1, 2, 3]
    assert events[-1] == ("finish", "a")
    assert plan.left == 0
