"""Keeping the process small: glibc would hold on to what finished requests and closed models leave behind."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

import psutil

_M_ARENA_MAX = -8  # from glibc's malloc.h
_ARENAS = 2  # one for each thread by default, and this server has many threads: each would keep its own free memory


def limit_arenas() -> None:
    """Make all threads share few malloc arenas. Call before threads are started; does nothing elsewhere than glibc."""
    mallopt = _libc("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


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
