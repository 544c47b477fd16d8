"""Keeps ``jobs`` pages in flight until all are done: each goes to the reader, then to the sink.

A picture lives from its drawing until the same thread has the text: at most ``jobs`` pictures are in memory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from models.model_errors import InvalidInput
from runtime.documents import Document, Drawn, Stopped

from ..writers import Material, PageResult
from ..writers.figures import Pictures
from .command_errors import CommandFailed, Interrupted
from .keeping import MOST, Keeper, Keeping
from .material import OpenedAgain
from .page import read_page, read_together, with_pictures
from .pixel_budget import PixelBudget
from .plan import DocumentPlan
from .progress import Progress, say
from .readers import Reader

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2  # seconds until a signal is noticed
PIXELS_IN_FLIGHT = 24_000_000  # pixels; each takes 4 bytes here, as many in the model's preparation, and 8 in a worker


class Sink(Keeper, Protocol):
    """Where results go: ``folder.OutputFolder`` or ``stdout.Printer``. Only ``put`` is called on other threads."""

    def pictures(self, plan: DocumentPlan) -> Pictures:
        """Which pictures to make of a document's pages."""

    def finish(self, plan: DocumentPlan, head: Mapping[str, Any], material: Material) -> None:
        """Publish a document whose pages are all finished. Raises as ``Material.picture``."""

    def fail(self, plan: DocumentPlan) -> None:
        """Note that a document cannot be opened."""


@dataclass(eq=False)
class _Open:
    """A document with pages in flight."""

    plan: DocumentPlan
    document: Document
    unread: int  # pages of plan.todo that have not been read
    unsettled: int  # pages of plan.todo that have not been settled


class Run:
    """One run over all documents."""

    def __init__(
        self,
        reader: Reader,
        sink: Sink,
        open_source: Callable[[DocumentPlan], Document],
        head: Callable[[DocumentPlan], Mapping[str, Any]],
        progress: Progress,
        stop: threading.Event,
        min_confidence: float = 0.0,
    ) -> None:
        """min_confidence : mean token probability below which a page is marked as doubtful."""
        self._reader, self._sink, self._open_source, self._head = reader, sink, open_source, head
        self._progress, self._stop, self._min_confidence = progress, stop, min_confidence
        self._pixels = PixelBudget(PIXELS_IN_FLIGHT)
        self._broken: Exception | None = None
        self._opened: list[_Open] = []
        self._keeping: Keeping[_Open] = Keeping(sink, progress)
        self._left: dict[str, int] = {}  # document -> unfinished pages of its todo

    def read_all(self, plans: Sequence[DocumentPlan], jobs: int) -> None:
        """Read every page of the plans' todo; returns early when ``stop`` is set.

        Raises
        ------
        CommandFailed
            when no page can be read any more; finished pages are kept.
        """
        self._left = {plan.source.name: len(plan.todo) for plan in plans}
        tasks = self._tasks(plans)
        flying: dict[Future[None], tuple[_Open, int]] = {}
        try:
            with ThreadPoolExecutor(jobs, "page") as pool:
                try:
                    while True:
                        while len(flying) < jobs and not self._stop.is_set() and (task := next(tasks, None)):
                            opened, indices = task
                            flying[pool.submit(self._read, opened, indices)] = opened, len(indices)
                        if not flying:
                            break
                        for future in wait(flying, POLL_SECONDS, FIRST_COMPLETED).done:
                            self._look_at(future, *flying.pop(future))
                        self._settle(MOST)
                        self._progress.show()
                except BaseException:
                    self._stop.set()  # the pool waits for threads that still read
                    raise
            while self._keeping.pages:
                self._settle(0)
        finally:
            self._keeping.close()
            for opened in self._opened:
                opened.document.close()
            for plan in plans:
                plan.left += self._left[plan.source.name] if plan.error is None else 0
        if self._broken is not None:
            raise self._broken

    def _tasks(self, plans: Sequence[DocumentPlan]) -> Iterator[tuple[_Open, Sequence[int]]]:
        """Tasks in page order; pages read together are one task. A document is opened with its first task."""
        for plan in plans:
            if not plan.todo:
                if plan.error is None and not plan.whole and not plan.left:
                    self._finish(plan)  # an earlier run was killed between the last page and publishing
                continue
            try:
                document = self._open_source(plan)
            except Stopped:
                return  # ``stop`` is set: begin nothing more
            except InvalidInput as error:
                self._settle(0)  # earlier pages are noted first
                plan.error = str(error)
                self._sink.fail(plan)
                say(f"failed: {plan.error}")
                continue
            opened = _Open(plan, document, len(plan.todo), len(plan.todo))
            self._opened.append(opened)
            yield from [(opened, plan.todo)] if self._reader.joint else ((opened, [index]) for index in plan.todo)

    def _read(self, opened: _Open, indices: Sequence[int]) -> None:
        """Read one page, or pages that are read together. Runs on a thread of the pool."""
        work = self._progress.begin(len(indices))
        document, stop, doubt = opened.document, self._stop.is_set, self._min_confidence
        try:
            if stop():
                raise Interrupted
            if self._reader.joint:
                read = read_together(self._reader, document, indices, stop, min_confidence=doubt, work=work)
                for result, page in read:
                    wait([self._keep(opened, result, page)])  # frees a page's pictures before the next page
                return
            with self._pixels.share() as share:

                def draw() -> Drawn:
                    share.take(document.weight(indices[0], stop), stop)
                    return document.draw(indices[0], stop)

                result, page = read_page(
                    self._reader, draw, indices[0], opened.plan.source.name, min_confidence=doubt, work=work
                )
                self._keep(opened, result, page)
        finally:
            self._progress.end(work)

    def _keep(self, opened: _Open, result: PageResult, page: Image.Image | None) -> Future[None]:
        """Have a page written, without waiting."""
        plan = opened.plan
        return self._keeping.add(
            opened, plan, *with_pictures(self._sink.pictures(plan), result, page, plan.source.name)
        )

    def _look_at(self, future: Future[None], opened: _Open, pages: int) -> None:
        """Take a finished task's results, or its error."""
        opened.unread -= pages
        if not opened.unread:
            opened.document.close()
            self._opened.remove(opened)
        try:
            future.result()
        except Interrupted:
            return
        except Exception as error:
            self._broken = self._broken or error
            self._stop.set()

    def _settle(self, most: int) -> None:
        """Note pages that have been written, until at most ``most`` are still being written."""
        try:
            for opened, _, _ in self._keeping.settle(most):
                self._left[opened.plan.source.name] -= 1
                opened.unsettled -= 1
                if not opened.unsettled and not opened.plan.left:
                    self._finish(opened.plan)
        except CommandFailed as error:
            self._broken = self._broken or error
            self._stop.set()

    def _finish(self, plan: DocumentPlan) -> None:
        publish(self._sink, plan, self._head(plan), self._open_source)


def publish(
    sink: Sink, plan: DocumentPlan, head: Mapping[str, Any], open_source: Callable[[DocumentPlan], Document]
) -> None:
    """Publish a document; one that cannot be written does not end the run."""
    try:
        with OpenedAgain(plan.source, lambda: open_source(plan), plan.password) as material:
            sink.finish(plan, head, material)
        return
    except Stopped:
        return  # ``stop`` is set; finished pages are kept for --resume
    except CommandFailed:
        raise
    except InvalidInput as error:
        reason = str(error)
    except Exception as error:
        log.exception("unexpected error while writing %s", plan.source.name)
        reason = f"internal error: {type(error).__name__}: {error}"
    plan.error = f"{plan.source.name} cannot be written: {reason}; what was read is kept for --resume"
    sink.fail(plan)
    say(f"failed: {plan.error}")
