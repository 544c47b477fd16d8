"""A clock that a test puts forward, so that a time limit is over when the test says so, on a machine of any speed."""

from __future__ import annotations

import time


class Clock:
    """Stands for the module ``time`` in a module of the product: goes on as the real one, ``ahead`` seconds of it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
