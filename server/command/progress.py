"""The progress bar: pages done, pages per minute, time left. Silent where nobody looks."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from tqdm import tqdm

_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} pages, {per_minute} pages/min, {remaining} left{postfix}"


class _PageBar(tqdm):  # type: ignore[type-arg]
    """tqdm knows units a second; pages are slower."""

    @property
    def format_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = dict(super().format_dict)
        elapsed, done = values["elapsed"], values["n"] - values["initial"]
        values["per_minute"] = f"{done / elapsed * 60:.1f}" if done and elapsed > 0 else "?"
        return values


class Progress:
    """One bar on standard error; messages come above it."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        terminal = sys.stderr.isatty()
        # One that does not know its size says 0 (docker exec, serial lines), where tqdm would show nothing.
        size: dict[str, Any] = {"dynamic_ncols": True} if terminal and _has_size() else {"ncols": 79, "nrows": 24}
        self._bar = _PageBar(
            total=total, bar_format=_FORMAT, disable=quiet or not terminal or not total, file=sys.stderr,
            mininterval=0.2, smoothing=0.1, **size,
        )  # fmt: skip
        self._failed = 0

    def page(self, *, failed: bool) -> None:
        """One page more has been dealt with."""
        self._failed += failed
        if self._failed:
            self._bar.set_postfix_str(f"{self._failed} failed", refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


def _has_size() -> bool:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False


class BarHandler(logging.Handler):
    """Log lines that do not tear a bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def configure_log(*, quiet: bool) -> None:
    """Warnings of all packages, and the progress of an export, as plain lines on standard error."""
    handler = BarHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.ERROR if quiet else logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in ("server.loading", "server.exporting"):
        logging.getLogger(name).setLevel(logging.ERROR if quiet else logging.INFO)


def say(line: str) -> None:
    """A line on standard error, above the bar when there is one."""
    tqdm.write(line, file=sys.stderr)
