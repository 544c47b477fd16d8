"""Writes pages that have been read to the output, on threads of its own, several at once.

Used by the loops over pages without Ray (``run``) and with Ray (``server.ray.batch``). Reading goes on meanwhile: a
disk flushes several files in the time of one, and a bucket takes several in that time. A page is finished once written:
only then is it noted in the run manifest, in the order in which pages came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from runtime.library import memory

from ..writers import PageResult
from .command_errors import CommandFailed
from .plan import DocumentPlan
from .progress import Progress, say

WRITERS = 16  # pages written at once: a bucket takes as long for one as for many
MOST = 2 * WRITERS  # pages in writing, beyond which reading pauses
TIDY_PAGES = 25  # pages after which freed memory goes back to the system: a run of days has no idle moment

D = TypeVar("D")


class Keeper(Protocol):
    """The part of ``run.Sink`` that takes pages."""

    def put(self, plan: DocumentPlan, result: PageResult, made: Mapping[str, bytes]) -> None:
        """Write one page and its pictures. Raises OSError."""

    def settle(self, plan: DocumentPlan, result: PageResult) -> None:
        """Note that one page is finished."""


@dataclass(frozen=True)
class _Page(Generic[D]):
    document: D
    plan: DocumentPlan
    result: PageResult
    written: Future[None]


class Keeping(Generic[D]):
    """Pages that are being written. ``D``: the caller's key for a document."""

    def __init__(self, sink: Keeper, progress: Progress) -> None:
        self._sink, self._progress = sink, progress
        self._writers = ThreadPoolExecutor(WRITERS, "keep")
        self._pages: deque[_Page[D]] = deque()
        self._settled = 0

    def add(self, document: D, plan: DocumentPlan, result: PageResult, made: Mapping[str, bytes]) -> Future[None]:
        """Have a page and its pictures written; the future ends when they are. Any thread may call this."""
        written = self._writers.submit(self._sink.put, plan, result, made)
        self._pages.append(_Page(document, plan, result, written))
        return written

    def settle(self, most: int = MOST) -> Iterator[tuple[D, DocumentPlan, PageResult]]:
        """Note pages that have been written, until at most ``most`` are still being written. For one thread.

        Raises
        ------
        CommandFailed
            for a page that cannot be written; that page is skipped, later pages may follow.
        """
        while self._pages and (len(self._pages) > most or self._pages[0].written.done()):
            page = self._pages.popleft()
            try:
                page.written.result()
            except OSError as error:
                raise CommandFailed(
                    f"page {page.result.page} of {page.plan.source.name} cannot be written: {error}; "
                    "go on with --resume"
                ) from error
            self._sink.settle(page.plan, page.result)
            self._progress.page(failed=page.result.state == "failed")
            tell(page.plan, page.result)
            self._settled += 1
            if self._settled % TIDY_PAGES == 0:
                memory.give_memory_back()
            yield page.document, page.plan, page.result

    @property
    def pages(self) -> int:
        """Number of pages being written."""
        return len(self._pages)

    def close(self) -> None:
        """Wait for the pages still being written. Idempotent."""
        self._writers.shutdown()


def tell(plan: DocumentPlan, result: PageResult) -> None:
    """Log warnings about a page."""
    if result.state == "failed":
        say(f"failed: {_failure(plan.source.name, result.page, result.error or '')}")
    elif result.doubtful and result.confidence is not None:
        say(f"doubtful: {plan.source.name}, page {result.page}: confidence {result.confidence.mean:.3f}")
    for warning in result.warnings:
        if warning not in plan.warned:  # a document's warning is logged with its first page
            plan.warned.add(warning)
            say(f"warning: {plan.source.name}, page {result.page}: {warning}")


def _failure(name: str, page: int, error: str) -> str:
    """An error that names the document and the page, each once."""
    if error.startswith(f"page {page} of {name} "):
        return error
    return f"{name}, page {page}: {error.removeprefix(f'{name} ')}"
