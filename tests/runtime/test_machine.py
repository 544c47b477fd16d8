"""A container's limits, on folders that look like cgroups."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import psutil
import pytest

from runtime.machine import available_memory, default_threads, processors, step_back

GB = 10**9


@pytest.fixture(autouse=True)
def a_large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 cores, 64 GB free: whatever is less comes from the groups."""
    memory = psutil.virtual_memory()._replace(available=64 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 32 if logical else 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(32)), raising=False)


def group(folder: Path, **files: str) -> Path:
    """A group with such files, ``memory_max`` for memory.max."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text + "\n")
    return folder


def member(tmp_path: Path, path: str) -> Path:
    file = tmp_path / "membership"
    file.write_text(f"4:memory:/old\n0::{path}\n")
    return file


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", 64 * GB), (str(8 * GB), 5 * GB), (str(2 * GB), 0), (str(900 * GB), 64 * GB)]
)
def test_memory_is_what_the_container_has_left_or_the_machine(tmp_path, limit, expected) -> None:
    groups = group(tmp_path / "groups", memory_max=limit, memory_current=str(3 * GB))
    assert available_memory(groups, member(tmp_path, "/")) == expected


def test_memory_of_files_that_nobody_reads_any_more_counts_as_free(tmp_path) -> None:
    stat = f"anon {2 * GB}\nfile {3 * GB}\ninactive_file {GB}\nactive_file {2 * GB}"
    groups = group(tmp_path / "groups", memory_max=str(8 * GB), memory_current=str(5 * GB), memory_stat=stat)
    assert available_memory(groups, member(tmp_path, "/")) == 4 * GB


def test_the_narrowest_of_the_groups_around_the_process_counts(tmp_path) -> None:
    groups = group(tmp_path / "groups")
    group(groups / "house", memory_max=str(10 * GB), memory_current=str(9 * GB), cpu_max="200000 100000")
    group(groups / "house" / "room", memory_max=str(8 * GB), memory_current=str(2 * GB), cpu_max="600000 100000")
    group(groups / "other", memory_max=str(GB), memory_current="0", cpu_max="100000 100000")
    inside = member(tmp_path, "/house/room")
    assert available_memory(groups, inside) == GB
    assert processors(groups, inside) == 2


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 16), ("400000 100000", 4), ("150000 100000", 1), ("50000 100000", 1), ("9000000 100000", 16)],
)
def test_processors_are_whole_ones_of_the_quota(tmp_path, quota, expected) -> None:
    groups = group(tmp_path / "groups", cpu_max=quota)
    assert processors(groups, member(tmp_path, "/")) == expected
    assert default_threads(groups, member(tmp_path, "/")) == (expected if expected < 16 else 0)


def test_processors_are_those_that_the_process_may_run_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 5, 9}, raising=False)
    assert processors(tmp_path, member(tmp_path, "/")) == 3


@pytest.mark.parametrize("text", ["", "none", "-1", "12 34 56", "0 0"])
def test_files_that_say_something_else_are_no_limit(tmp_path, text) -> None:
    groups = group(tmp_path / "groups", memory_max=text, memory_current=text, cpu_max=text)
    assert available_memory(groups, member(tmp_path, "/")) == 64 * GB
    assert processors(groups, member(tmp_path, "/")) == 16


def test_without_cgroups_the_machine_is_the_limit(tmp_path) -> None:
    missing = tmp_path / "missing"
    assert available_memory(missing, missing) == 64 * GB
    assert processors(missing, missing) == 16


def test_here_and_now_there_is_something() -> None:
    assert 0 < available_memory() <= 64 * GB
    assert 0 < processors() <= 16


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is a thread's own on Linux only")
def test_a_thread_that_steps_back_takes_those_with_it_that_it_starts_and_nobody_else() -> None:
    found: list[int] = []

    def look() -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def behind() -> None:
        step_back(2)
        look()
        started = threading.Thread(target=look)
        started.start()
        started.join()

    look()
    thread = threading.Thread(target=behind)
    thread.start()
    thread.join()
    look()
    before, own, child, after = found
    assert own == child == min(before + 2, 19)
    assert after == before
