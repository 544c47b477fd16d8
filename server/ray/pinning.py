"""Pins an engine on a cluster to CPUs of its own: as many as Ray reserved, and none that another engine of ours has.

Called by the actors of ``read --ray`` and the replicas of ``serve --ray``, each in its process.

Ray counts CPUs but names none. A process claims a CPU by binding a socket to the CPU's name: Linux gives a name to one
process only, and frees the name when that process ends, even when it is killed. On other systems, and where too few
CPUs are free, the engine is not pinned.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

_NAME = "\0ocr-onnx/cpu/{}"  # of an abstract socket: not a file, and unique on a machine
_THREADS = Path("/proc/self/task")


@dataclass
class Pinned:
    """CPUs that this process has claimed: until ``close``, or until the process ends."""

    cpus: frozenset[int]
    _claims: list[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        """Give the CPUs back, so that other processes can claim them. Idempotent."""
        while self._claims:
            self._claims.pop().close()


def pin(count: int) -> Pinned | None:
    """Keep all threads of this process, and those that it starts later, on ``count`` CPUs that it claims.

    Returns None and changes nothing where fewer CPUs can be claimed (more engines than CPUs) and on other systems.
    """
    if sys.platform != "linux":
        return None
    taken: dict[int, socket.socket] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        if len(taken) < count and (claim := _claim(cpu)) is not None:
            taken[cpu] = claim
    pinned = Pinned(frozenset(taken), list(taken.values()))
    if len(taken) < count:
        pinned.close()
        log.warning("this engine stays on all CPUs: %d are free here, and it is to have %d", len(taken), count)
        return None
    for thread in _threads():
        with contextlib.suppress(ProcessLookupError):  # the thread has ended meanwhile
            os.sched_setaffinity(thread, pinned.cpus)
    return pinned


def _claim(cpu: int) -> socket.socket | None:
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(_NAME.format(cpu))
    except OSError:  # another process has claimed this CPU
        claim.close()
        return None
    return claim


def _threads() -> Iterator[int]:
    for path in _THREADS.iterdir():
        yield int(path.name)
