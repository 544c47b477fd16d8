"""Waiting for what another thread or process brings about."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Come back when the condition holds; it is an error when it does not within so many seconds."""
    end, pause = time.monotonic() + seconds, 0.005
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(pause)
        pause = min(1.1 * pause, 0.05)  # who waits for long leaves the processor to what is waited for
