"""Keeping the process small: glibc would hold on to what finished requests and closed models leave behind."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

import psutil

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_ARENAS = 2  # one for each thread by default, and this server has many threads: each would keep its own free memory
# Bytes from which on an allocation is a mapping of its own, which goes back when it is freed. By default glibc raises
# this with every one that is freed, up to 32 MiB: a later model's weights lie in an arena then, where one small
# allocation above them holds them all (seen: 415 MB resident instead of 287 with the same model loaded). With 1 MiB the
# arrays of every page were mapped anew, a tenth of the time of reading.
_MAPPED = 8 << 20
_KEPT = 8 << 20  # free bytes at the end of an arena that stay; 128 KiB by default, once the other is set


def settle_malloc() -> None:
    """Make threads share few arenas, and large allocations go back at once. Call before threads are started.

    Does nothing elsewhere than glibc.
    """
    mallopt = _libc("mallopt")
    if mallopt is not None:
        for parameter, value in ((_M_ARENA_MAX, _ARENAS), (_M_MMAP_THRESHOLD, _MAPPED), (_M_TRIM_THRESHOLD, _KEPT)):
            mallopt(parameter, value)


def give_memory_back() -> None:
    """Return freed memory to the system now."""
    gc.collect()
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


def resident_mb() -> float:
    """Resident memory of this process, in MB."""
    return float(psutil.Process().memory_info().rss / 1e6)


def _libc(name: str) -> Any:
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except OSError:
        return None
