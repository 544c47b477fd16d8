"""Ends a session's run from another thread: a cancel, a deadline and a shutdown do not wait for a pass of seconds."""

from __future__ import annotations

import threading
from typing import Protocol, TypeVar


class RunOptions(Protocol):
    """What ONNX Runtime looks at between two nodes."""

    terminate: bool


Options = TypeVar("Options", bound=RunOptions)


class Stop:
    """Asked for once, it ends the run that goes on, and every one that begins later."""

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
        """The options of a run that this may end; they serve one run, since nothing takes the mark off them again."""
        with self._lock:
            options.terminate = self.requested
            self._options = options
        return options
