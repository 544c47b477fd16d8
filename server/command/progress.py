"""The progress bar: pages done and in flight and, once known, the rate and the time left.

Silent where standard error is no terminal.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from models.grounding import PAGE_BREAK

from .command_errors import printable

_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} pages{forecast}{postfix}"


@dataclass(eq=False)  # compared by identity: two pages may be at the same stage
class PageWork:
    """The state of one page in flight, or of pages read together; written by the thread that reads them."""

    stage: str = "drawing"
    tokens: int = 0  # of the answer so far
    pages: int = 1
    written: int = 0  # of several pages: pages whose end the answer has marked
    _end: str = ""  # the end of the answer so far, shorter than a mark

    def begin_again(self, stage: str) -> None:
        """Forget the answer so far."""
        self.stage, self.tokens, self.written, self._end = stage, 0, 0, ""

    def add(self, text: str, tokens: int) -> None:
        """Count the next piece of the answer."""
        self.tokens += tokens
        text = self._end + text
        self.written += text.count(PAGE_BREAK)
        self._end = text[-len(PAGE_BREAK) + 1 :]


class PageBar(tqdm):  # type: ignore[type-arg]
    """A bar whose rate is pages a minute: tqdm knows units a second only."""

    @property
    def format_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = dict(super().format_dict)
        elapsed, done = values["elapsed"], values["n"] - values["initial"]
        values["per_minute"] = f"{done / elapsed * 60:.1f}" if done and elapsed > 0 else ""
        # Before the first page is done, the rate is unknown.
        values["forecast"] = f", {values['per_minute']} pages/min, {self._left(values)} left" if done else ""
        return values

    def _left(self, values: dict[str, Any]) -> str:
        rate = values["rate"] or (values["n"] - values["initial"]) / max(values["elapsed"], 1e-9)
        return self.format_interval((values["total"] - values["n"]) / rate)


class Progress:
    """One bar on standard error, with messages above the bar."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        terminal = sys.stderr.isatty()
        # A terminal of unknown size reports 0 (docker exec, serial lines), and tqdm would show nothing.
        size: dict[str, Any] = {"dynamic_ncols": True} if terminal and has_size() else {"ncols": 79, "nrows": 24}
        self._bar = PageBar(
            total=total, bar_format=_FORMAT, disable=quiet or not terminal or not total, file=sys.stderr,
            mininterval=0.2, smoothing=0.1, **size,
        )  # fmt: skip
        self._total, self._failed = total, 0
        self._lock = threading.Lock()
        self._working: list[PageWork] = []  # guarded by the lock: each page's thread adds and removes its work

    def begin(self, pages: int = 1) -> PageWork:
        """Note that a page, or several together, are in flight; called by the thread that reads them."""
        work = PageWork(pages=pages)
        with self._lock:
            self._working.append(work)
        return work

    def end(self, work: PageWork) -> None:
        """Note that the page is no longer in flight; called by the thread that read it."""
        with self._lock:
            self._working.remove(work)

    def show(self) -> None:
        """Refresh the bar. Called again and again while pages are in flight."""
        self._bar.set_postfix_str(self.words(), refresh=True)

    def page(self, *, failed: bool) -> None:
        """Count one more finished page."""
        self._failed += failed
        self._bar.set_postfix_str(self.words(), refresh=False)
        self._bar.update()

    def words(self) -> str:
        """The pages in flight, as text behind the bar."""
        with self._lock:
            working = list(self._working)
        stages = Counter(work.stage for work in working)
        tokens = sum(work.tokens for work in working)
        if self._total == 1:
            doing = ", ".join(stages)
        else:
            doing = ", ".join(f"{count} {stage}" for stage, count in stages.items())
        together = [work for work in working if work.pages > 1]
        pages = f"{sum(work.written for work in together)} of {sum(work.pages for work in together)} pages written"
        failed = f"{self._failed} failed" if self._failed else ""
        return ", ".join(filter(None, (failed, doing, pages if together else "", f"{tokens} tokens" if tokens else "")))

    def close(self) -> None:
        self._bar.close()


def has_size() -> bool:
    """Whether standard error is a terminal of known width."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False


class BarHandler(logging.Handler):
    """Writes log lines without tearing the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(printable(self.format(record), keep="\n"), file=sys.stderr)


def configure_log(*, quiet: bool) -> None:
    """Warnings of all packages, and the progress of an export, as plain lines on standard error."""
    handler = BarHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.ERROR if quiet else logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in ("runtime.library.source", "runtime.library.export_process"):
        logging.getLogger(name).setLevel(logging.ERROR if quiet else logging.INFO)


def say(line: str) -> None:
    """Write a line to standard error, above the bar when there is one."""
    tqdm.write(printable(line), file=sys.stderr)
