"""What this process may use: free memory and processors, a container's limits included (Linux's cgroups, version 2).

A container sees the whole machine in the usual places, and is killed, or held up, at limits that stand elsewhere. They
hold along the whole path of groups that the process is in, so the narrowest counts.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def available_memory(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Bytes that this process may take now without anything being swapped or killed.

    groups : where cgroups are mounted. membership : the file that says which of them this process is in.
    """
    rooms = [int(psutil.virtual_memory().available)]
    for group in _path(groups, membership):
        limit, used = _number(group / "memory.max"), _number(group / "memory.current")
        if limit is not None and used is not None:
            rooms.append(max(0, limit - used + _reclaimable(group)))
    return min(rooms)


def processors(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Threads that can compute at once: physical cores, as far as this process may run on them and for all its time.

    A quota is rounded down, as threads beyond it would stand still for a part of every period, and with them those that
    wait for their results.
    """
    counts = [psutil.cpu_count(logical=False) or os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        counts.append(len(os.sched_getaffinity(0)))
    for group in _path(groups, membership):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            counts.append(int(quota) // int(period))
    return max(1, min(counts))


def default_threads(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Threads of an operator: 0, by which ONNX Runtime means a thread for each core, unless fewer may run."""
    count = processors(groups, membership)
    return 0 if count == (psutil.cpu_count(logical=False) or os.cpu_count() or 1) else count


def _path(groups: Path, membership: Path) -> Iterator[Path]:
    """The group of this process and those that it is in, the narrowest first; none on other systems."""
    own = next((line[3:] for line in _text(membership).splitlines() if line.startswith("0::")), None)
    if own is None:
        return
    group = groups / own.lstrip("/")
    while True:
        yield group
        if group in (groups, group.parent):
            return
        group = group.parent


def _reclaimable(group: Path) -> int:
    """Bytes that count as used and go as soon as somebody needs them: files that were read long ago."""
    for line in _text(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file" and value.isdigit():
            return int(value)
    return 0


def _number(file: Path) -> int | None:
    """None where there is no limit ("max"), or no such file."""
    text = _text(file)
    return int(text) if text.isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # not Linux, no cgroups, or a container that hides them
        return ""


def step_back(by: int) -> None:
    """Let all other threads go before this one and those that it starts, where they want the same processor.

    by : steps of niceness, each of which leaves a contended processor's share to the others by a factor of 1.25. Linux
    counts niceness by thread and hands it on; elsewhere it is the process's, and nothing is done.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + by, 19))
