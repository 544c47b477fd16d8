"""Keeping the process small: glibc would hold on to what finished requests and closed models leave behind."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

import psutil

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_ARENAS = 2  # arenas; by default there is one for each thread, and each keeps its own free memory
# Allocations of this many bytes and more are mappings of their own, which return to the system when freed. By default
# glibc raises the threshold with every mapping freed, up to 32 MiB. A later model's weights would then lie in an arena,
# where one small allocation above keeps all of them (seen: 415 MB resident instead of 287 with the same model). With 1
# MiB, the arrays of every page were mapped anew, which took a tenth of the reading time.
_MAPPED = 8 << 20
_KEPT = 8 << 20  # free bytes kept at an arena's end; 128 KiB by default once the threshold is set


def settle_malloc() -> None:
    """Make threads share few arenas, and give freed large allocations back at once. Call before threads are started.

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
