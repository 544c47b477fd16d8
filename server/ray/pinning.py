"""Which CPUs an engine on a cluster computes on: as many as Ray gave it, and no other engine of ours the same.

Called by the actors of ``read --ray`` and the replicas of ``serve --ray``, each in its process.

Ray counts CPUs and names none. Each process takes its own by names that the system hands out once and takes back when
the process ends, however it does. Linux only; elsewhere, and where fewer are free, the system goes on choosing.
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

_NAME = "\0ocr-onnx/cpu/{}"  # of an abstract socket, which is no file: one on this machine
_THREADS = Path("/proc/self/task")


@dataclass
class Pinned:
    """CPUs that this process has for as long as it lives, or until ``close``."""

    cpus: frozenset[int]
    _claims: list[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        """Let others have them. Idempotent."""
        while self._claims:
            self._claims.pop().close()


def pin(count: int) -> Pinned | None:
    """Keep all threads of this process, and those to come, on ``count`` CPUs that no other process has taken so.

    None where there are not so many, and nothing is changed: more engines than CPUs, or a system that cannot do it.
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
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(thread, pinned.cpus)
    return pinned


def _claim(cpu: int) -> socket.socket | None:
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(_NAME.format(cpu))
    except OSError:  # another process has it
        claim.close()
        return None
    return claim


def _threads() -> Iterator[int]:
    for path in _THREADS.iterdir():
        yield int(path.name)
