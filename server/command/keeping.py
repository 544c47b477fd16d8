"""Pages that have been read, on their way to the output: written by threads of their own, several at once.

Called by the loops over pages without Ray (``run``) and with it (``server.ray.batch``). Whoever reads goes on with the
next page meanwhile, since a disk takes as long to flush one file as several, and a bucket to take them. A page counts
when it is written: only then is it noted in the run manifest, in the order in which pages came.
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

WRITERS = 16  # pages that are written at once: a bucket takes as long for one as for many
MOST = 2 * WRITERS  # pages that are being written before no more are read
TIDY_PAGES = 25  # after so many, freed memory goes back to the system: a run of days has no idle moment for it

D = TypeVar("D")


class Keeper(Protocol):
    """The part of ``run.Sink`` that pages go to."""

    def put(self, plan: DocumentPlan, result: PageResult, made: Mapping[str, bytes]) -> None:
        """Write one page and the pictures made of it. Raises OSError."""

    def settle(self, plan: DocumentPlan, result: PageResult) -> None:
        """One page has been dealt with."""


@dataclass(frozen=True)
class _Page(Generic[D]):
    document: D
    plan: DocumentPlan
    result: PageResult
    written: Future[None]


class Keeping(Generic[D]):
    """Pages that are being written. ``D``: what the caller knows a document by."""

    def __init__(self, sink: Keeper, progress: Progress) -> None:
        self._sink, self._progress = sink, progress
        self._writers = ThreadPoolExecutor(WRITERS, "keep")
        self._pages: deque[_Page[D]] = deque()
        self._settled = 0

    def add(self, document: D, plan: DocumentPlan, result: PageResult, made: Mapping[str, bytes]) -> Future[None]:
        """Have a page written, with the pictures made of it; when it is. Any thread may."""
        written = self._writers.submit(self._sink.put, plan, result, made)
        self._pages.append(_Page(document, plan, result, written))
        return written

    def settle(self, most: int = MOST) -> Iterator[tuple[D, DocumentPlan, PageResult]]:
        """Note the pages that have been written, until no more than ``most`` are on their way. For one thread.

        Raises
        ------
        CommandFailed
            for a page that cannot be written; it does not come, those behind it may.
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
        """On their way."""
        return len(self._pages)

    def close(self) -> None:
        """Wait for what is still being written. Idempotent."""
        self._writers.shutdown()


def tell(plan: DocumentPlan, result: PageResult) -> None:
    """Say what the user should know of a page."""
    if result.state == "failed":
        say(f"failed: {_failure(plan.source.name, result.page, result.error or '')}")
    elif result.doubtful and result.confidence is not None:
        say(f"doubtful: {plan.source.name}, page {result.page}: confidence {result.confidence.mean:.3f}")
    for warning in result.warnings:
        if warning not in plan.warned:  # what is wrong with all pages is said with the first
            plan.warned.add(warning)
            say(f"warning: {plan.source.name}, page {result.page}: {warning}")


def _failure(name: str, page: int, error: str) -> str:
    """An error with its document's name and its page's number, each of them once."""
    if error.startswith(f"page {page} of {name} "):
        return error
    return f"{name}, page {page}: {error.removeprefix(f'{name} ')}"
