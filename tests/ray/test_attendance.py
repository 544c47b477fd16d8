"""A round of pages ends, whoever dies: nothing waits for engines that do not come."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.command.command_errors import CommandFailed
from server.command.plan import DocumentPlan
from server.ray import attendance, batch
from server.ray.reading import PageAnswer, ReadingJob
from server.writers import PageResult

from . import conftest
from .conftest import NOT_HERE, StubReader, picture_pages, plan_of, read_with


@pytest.fixture
def small_cluster() -> Iterator[Any]:
    """Starts clusters of one node in this process, one after the other."""
    ray = pytest.importorskip("ray", reason=NOT_HERE)
    if ray.is_initialized():
        pytest.skip("a cluster runs in this process, whose size is not ours")
    ray.cloudpickle.register_pickle_by_value(conftest)

    def start(cpus: int) -> None:
        ray.shutdown()
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False,
                 object_store_memory=conftest.STORE)  # fmt: skip

    yield start
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.cluster
def test_a_deadly_page_leaves_no_actor_behind_that_the_next_round_would_wait_for(
    small_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether the dead actor's handle is collected meanwhile was chance: the first session of a process went on, the
    # second waited for ever for the CPUs that it kept.
    monkeypatch.setattr(attendance, "LONELY_SECONDS", 120.0)
    gc.disable()
    try:
        for session in ("first", "second"):
            small_cluster(2)
            plans = [plan_of(picture_pages(tmp_path / f"{number}.tif", 100 * number, 2), 2) for number in range(3)]
            read_with(StubReader(deadly=(101,)), plans, tmp_path / session, actors=1)
            assert [plan.failed for plan in plans] == [0, 1, 0]
            assert [plan.left for plan in plans] == [0, 0, 0]
    finally:
        gc.enable()


@pytest.mark.ray
def test_engines_that_the_cluster_has_no_room_for_end_the_run_and_nothing_counts_as_failed(
    small_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.ray.cluster import Pool

    monkeypatch.setattr(attendance, "LONELY_SECONDS", 5.0)
    small_cluster(1)
    monkeypatch.setattr(conftest, "Pool", lambda actors, *_: Pool(actors, 2, 2, 0, 1))
    plans = [plan_of(picture_pages(tmp_path / "a.tif", 0, 3), 3)]
    with pytest.raises(CommandFailed, match=r"no engine has started for .* each takes 2 CPUs .*--resume"):
        read_with(StubReader(), plans, tmp_path / "out", actors=1)
    assert (plans[0].left, plans[0].failed) == (3, 0)
    assert not any("StreamingExecutor" in thread.name for thread in threading.enumerate())


class Blocks:
    """Of answers, as a column of Arrow."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers

    def column(self, name: str) -> Any:
        return self

    def to_pylist(self) -> list[bytes]:
        return self._answers


class Rounds:
    """A dataset that gives the answers of a round and then waits, as Ray's does when its last actor has gone."""

    def __init__(self, *rounds: list[int]) -> None:
        self._rounds = list(rounds)
        self.dismissed = threading.Event()
        self.looks = 0

    def __call__(self, rows: Any, how: Any) -> Rounds:
        self.dismissed.clear()
        self.looks = 0
        return self

    def iter_batches(self, **_: Any) -> Iterator[Blocks]:
        yield Blocks([pickle.dumps(PageAnswer(0, PageResult(page, "done"), {})) for page in self._rounds.pop(0)])
        assert self.dismissed.wait(20)

    def lives(self, class_name: str) -> bool:
        """An actor is there once in a round, and then no more."""
        self.looks += 1
        return self.looks == 1


class Kept:
    """See ``run.Sink``."""

    def __init__(self) -> None:
        self.pages: list[tuple[int, str]] = []

    def put(self, plan: DocumentPlan, result: PageResult, made: Any) -> None: ...

    def settle(self, plan: DocumentPlan, result: PageResult) -> None:
        self.pages.append((result.page, result.state))

    def pictures(self, plan: DocumentPlan) -> None: ...

    def finish(self, plan: DocumentPlan, head: Any, material: Any) -> None: ...


def run_of(rounds: Rounds, sink: Kept, monkeypatch: pytest.MonkeyPatch) -> batch.ClusterRun:
    from server.command.progress import Progress
    from server.ray.cluster import Pool

    monkeypatch.setattr(attendance, "LONELY_SECONDS", 0.6)
    monkeypatch.setattr(attendance, "lives", rounds.lives)
    monkeypatch.setattr(batch, "dismiss", rounds.dismissed.set)
    monkeypatch.setattr(batch, "release", lambda name: None)
    run = batch.ClusterRun(
        ReadingJob(StubReader, ""), None, Pool(1, 1, 1, 0, 1), sink, lambda plan: {}, lambda plan: None,  # type: ignore[arg-type, return-value]
        Progress(0, quiet=True), threading.Event(), batch=1,
    )  # fmt: skip
    monkeypatch.setattr(run, "dataset", rounds)
    return run


def test_pages_of_engines_that_die_and_do_not_come_back_are_read_again_and_then_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, sink = Rounds([1, 2], [], [4]), Kept()
    plan = plan_of(tmp_path / "a.tif", 4)
    run_of(rounds, sink, monkeypatch).read_all([plan])
    assert sorted(sink.pages) == [(1, "done"), (2, "done"), (3, "failed"), (4, "done")]
    assert plan.left == 0


def test_when_no_engine_comes_back_for_a_round_the_run_ends_and_the_pages_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, sink = Rounds([1, 2], []), Kept()
    plan = plan_of(tmp_path / "a.tif", 4)
    run = run_of(rounds, sink, monkeypatch)
    monkeypatch.setattr(attendance, "lives", lambda name: False)
    with pytest.raises(CommandFailed, match="no engine has started"):
        run.read_all([plan])
    assert sorted(sink.pages) == [(1, "done"), (2, "done")]
    assert plan.left == 2


def test_a_run_that_ends_early_leaves_no_thread_that_still_has_answers_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, sink = Rounds([1, 2, 3, 4, 5, 6, 7, 8, 9]), Kept()  # more than wait for the head
    run = run_of(rounds, sink, monkeypatch)
    answers = run.answers([], batch.ALONE)
    assert next(answers).result.page == 1
    answers.close()  # type: ignore[attr-defined]
    assert rounds.dismissed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "ray-data"]
