"""Memory and processors that this process may use, within a container's limits (Linux's cgroups, version 2).

A container sees the whole machine in the usual places, and is killed or throttled at the limits of its cgroups. Every
group on the process's path has limits, so the narrowest counts.
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
    """Bytes that this process may take now before anything is swapped or killed.

    groups : where cgroups are mounted. membership : the file that says which group this process is in.
    """
    rooms = [int(psutil.virtual_memory().available)]
    for group in _path(groups, membership):
        limit, used = _number(group / "memory.max"), _number(group / "memory.current")
        if limit is not None and used is not None:
            rooms.append(max(0, limit - used + _reclaimable(group)))
    return min(rooms)


def processors(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Threads that can compute at once: the physical cores that this process may use, within its quota of CPU time.

    A quota is rounded down: threads beyond the quota would stand still for a part of every period, and so would threads
    that wait for their results.
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
    """Threads of an operator: 0, ONNX Runtime's word for a thread per core, unless fewer may run."""
    count = processors(groups, membership)
    return 0 if count == (psutil.cpu_count(logical=False) or os.cpu_count() or 1) else count


def _path(groups: Path, membership: Path) -> Iterator[Path]:
    """This process's group and the groups around it, the narrowest first; none on other systems."""
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
    """Bytes counted as used that the kernel frees on demand: cached files that were read long ago."""
    for line in _text(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file" and value.isdigit():
            return int(value)
    return 0


def _number(file: Path) -> int | None:
    """The number in a file; None where there is no limit ("max") or no such file."""
    text = _text(file)
    return int(text) if text.isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # not Linux, no cgroups, or a container that hides them
        return ""


def step_back(by: int) -> None:
    """Lower the priority of this thread and of the threads that it starts.

    by : steps of niceness; each divides the thread's share of a contended processor by 1.25. Linux keeps niceness by
    thread, and new threads inherit it; elsewhere niceness belongs to the process, and nothing is done.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + by, 19))
