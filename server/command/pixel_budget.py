"""A limit of pixels for all pages in flight, so that memory does not grow with the size of pages."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from runtime.documents import Stop, Stopped

POLL_SECONDS = 0.2  # seconds until ``stop`` is noticed


class PixelBudget:
    """For any number of threads. A page larger than the whole budget is in flight alone."""

    def __init__(self, pixels: int) -> None:
        self._all = pixels
        self._left = pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """A page's share, which is given back at the end of the block."""
        share = Share(self)
        try:
            yield share
        finally:
            with self._changed:
                self._left += share.pixels
                self._changed.notify_all()

    def take(self, pixels: int, stop: Stop) -> int:
        """Wait for so many pixels, or for the whole budget. Returns how many were taken.

        Raises
        ------
        Stopped
            when ``stop`` turned true.
        """
        wanted = min(pixels, self._all)
        with self._changed:
            while self._left < wanted:
                if stop():
                    raise Stopped
                self._changed.wait(POLL_SECONDS)
            self._left -= wanted
        return wanted


@dataclass
class Share:
    """The pixels of one page in flight."""

    budget: PixelBudget
    pixels: int = 0

    def take(self, pixels: int, stop: Stop) -> None:
        """Take the pixels, once; see ``PixelBudget.take``."""
        self.pixels = self.budget.take(pixels, stop)
