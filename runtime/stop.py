"""Ends a session's run from another thread, so that cancel, deadline and shutdown do not wait for a pass of seconds."""

from __future__ import annotations

import threading
from typing import Protocol, TypeVar


class RunOptions(Protocol):
    """Run options, which ONNX Runtime looks at between two nodes."""

    terminate: bool


Options = TypeVar("Options", bound=RunOptions)


class Stop:
    """Ends the run in flight, and every run that begins later."""

    def __init__(self) -> None:
        self.requested = False
        self._options: RunOptions | None = None
        self._lock = threading.Lock()

    def request(self) -> None:
        """Callable from any thread; idempotent."""
        with self._lock:
            self.requested = True
            if self._options is not None:
                self._options.terminate = True

    def over(self, options: Options) -> Options:
        """Options of a run that ``request`` ends. For one run: the mark that ends a run cannot be removed."""
        with self._lock:
            options.terminate = self.requested
            self._options = options
        return options
