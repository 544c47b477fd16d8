"""Reads all pages of a run on a cluster: tasks of Ray Data draw the pages, and actors read them.

parcels of pages ─> draw (tasks) ─> pixels ─> PageActor (an engine each) ─> answers ─> the head: OUT
documents, whose pages are read together ───> PageActor, which draws them ──────┘

The head, which is this program, is the only one that writes: page by page as without Ray, and each page once. Ray Data
stops drawing while the actors, or the head, have enough to do. Pages that were lost with the process that held them are
read again in another round, one by one, which shows the page that kills its reader.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import pickle
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.documents import Document
from server.command.command_errors import CommandFailed
from server.command.keeping import MOST, Keeping
from server.command.plan import DocumentPlan
from server.command.progress import Progress, say
from server.command.run import POLL_SECONDS, Sink, publish
from server.writers import PageResult

from . import attendance
from .attendance import Attendance, dismiss, release
from .cluster import Pool
from .drawing import PARCEL, Drawing, documents, draw, parcels
from .reading import PageActor, PageAnswer, ReadingJob

log = logging.getLogger(__name__)

BLOCK_BYTES = 16 << 20  # of drawn pages, which go from machine to machine in blocks of this size
_AHEAD = 4  # batches of answers that may wait for the head
_END_SECONDS = 20.0  # that a dataset may take to end, once nobody wants its answers


@dataclass(frozen=True)
class Round:
    """How all pages that are left are sent through the cluster once."""

    parcel: int  # pages that one task draws, which are lost together with the process that holds them
    batch: int  # pages that an actor gets in one call, or documents whose pages are read together
    calls: int  # calls that an actor works on at the same time
    in_flight: int  # calls that are sent to an actor and not answered yet, with those that it works on
    retries: int  # how often Ray itself repeats a call whose actor has died


# A deadly page takes the other pages of its batch along. In a batch of one, only that page is lost.
ALONE = Round(parcel=1, batch=1, calls=1, in_flight=1, retries=1)


def rounds(batch: int, *, joint: bool) -> tuple[Round, ...]:
    """Pages in batches first, then alone, and alone again: a machine may die under a page that is not the reason.

    joint : all pages of a document are read together. Then a call has one document, so that an actor that has finished
    its own gets the next at once.
    """
    if joint:
        return Round(1, 1, calls=batch, in_flight=batch, retries=1), ALONE, ALONE
    return Round(PARCEL, batch, calls=2, in_flight=4, retries=1), ALONE, ALONE


class ClusterRun:
    """One run over all documents on a cluster; ``server.command.run.Run`` is the same without Ray."""

    def __init__(
        self, job: ReadingJob, drawing: Drawing, pool: Pool, sink: Sink,
        head: Callable[[DocumentPlan], Mapping[str, Any]], open_source: Callable[[DocumentPlan], Document],
        progress: Progress, stop: threading.Event, *, batch: int,
    ) -> None:  # fmt: skip
        """head : what the output says of a document. open_source : opens a document again, for formats that need its
        pages when they are written. batch : pages of a call; two calls at a time keep an actor's slots taken."""
        self._job, self._drawing, self._pool, self._batch = job, drawing, pool, batch
        self._joint = job.together is not None
        self._sink, self._head, self._progress, self._stop = sink, head, progress, stop
        self._open_source = open_source
        self._left: dict[int, set[int]] = {}  # a document's number -> pages to read, once its first page has come
        self._done: set[int] = set()  # documents of which nothing is left
        self._keeping: Keeping[int] = Keeping(sink, progress)
        self._in_writing: set[tuple[int, int]] = set()  # documents and pages that are given to the writer

    def read_all(self, plans: Sequence[DocumentPlan]) -> None:
        """Read every page that is to be read; return early when ``stop`` is set.

        Raises
        ------
        CommandFailed
            when no page can be read any more. Pages that were read before stay in the output.
        """
        for number, plan in enumerate(plans):
            if not plan.todo or plan.error is not None:
                self._done.add(number)
                if plan.error is None and not plan.whole and not plan.left:
                    self._publish(plan)  # the run before was killed between the last page and this
        try:
            planned = rounds(self._batch, joint=self._joint)
            for turn, how in enumerate(planned):
                count = sum(len(self._unread(number, plan)) for number, plan in enumerate(plans))
                if self._stop.is_set() or not count:
                    return
                if turn:
                    release(PageActor.__name__)
                    say(f"{count} pages were lost with the processes that held them; they are read again, one by one")
                self._read_once(plans, how)
            if not self._stop.is_set():
                self._give_up(plans)
        finally:
            self._keeping.close()
            while self._keeping.pages:
                with contextlib.suppress(CommandFailed):  # a page that cannot be written stays to be read
                    self._settle(0)
            for number, plan in enumerate(plans):
                plan.left += len(self._unread(number, plan))

    def _unread(self, number: int, plan: DocumentPlan) -> Sequence[int]:
        if number in self._done:
            return ()
        left = self._left.get(number)
        return plan.todo if left is None else sorted(left)

    def _read_once(self, plans: Sequence[DocumentPlan], how: Round) -> None:
        left = [self._unread(number, plan) for number, plan in enumerate(plans)]
        if self._joint:  # all pages of a document, even for one; ``take`` drops those that were kept before
            left = [plan.todo if unread else () for plan, unread in zip(plans, left, strict=True)]
            rows = list(documents(plans, left, self._sink.pictures))
        else:
            rows = list(parcels(plans, left, self._sink.pictures, how.parcel))
        for answer in self.answers(rows, how):
            self.take(plans[answer.number], answer)
        self._settle(0)

    def take(self, plan: DocumentPlan, answer: PageAnswer) -> None:
        """Keep one page, unless the page was kept before: Ray may run a task twice, and then answers come twice."""
        number, index = answer.number, answer.result.page - 1
        if number in self._done:
            return
        if number not in self._left:
            self._left[number] = set(plan.todo)
        if index not in self._left[number] or (number, index) in self._in_writing:
            return
        self._in_writing.add((number, index))
        self._keeping.add(number, plan, answer.result, answer.pictures)
        self._settle(MOST)

    def _settle(self, most: int) -> None:
        """Count pages that have been written, and wait until the writer has at most ``most`` pages left."""
        for number, plan, result in self._keeping.settle(most):
            self._in_writing.remove((number, result.page - 1))
            left = self._left[number]
            left.remove(result.page - 1)
            if not left:
                del self._left[number]
                self._done.add(number)
                if not plan.left:
                    self._publish(plan)

    def _publish(self, plan: DocumentPlan) -> None:
        publish(self._sink, plan, self._head(plan), self._open_source)

    def _give_up(self, plans: Sequence[DocumentPlan]) -> None:
        why = "every process that read it died; leave the page out, or look for the reason in Ray's logs"
        for number, plan in enumerate(plans):
            for index in self._unread(number, plan):
                self.take(plan, PageAnswer(number, PageResult(index + 1, "failed", why), {}))

    def answers(self, rows: list[dict[str, bytes]], how: Round) -> Iterator[PageAnswer]:
        """The answers of the actors in the order in which they come, until the round or the run (``stop``) is over.

        Actors that die and are not started again end the round.

        Raises
        ------
        CommandFailed
            when no actor can be started, or Ray ends the run.
        """
        arrived: queue.Queue[bytes | Exception | None] = queue.Queue(_AHEAD * how.batch)
        thread = threading.Thread(target=self._fetch, args=(rows, how, arrived), name="ray-data", daemon=True)
        thread.start()
        engines = Attendance(PageActor.__name__)
        try:
            while not self._stop.is_set():
                self._progress.show()
                try:
                    found = arrived.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    if engines.is_over():
                        if engines.met:
                            return  # the next round reads the pages that are left
                        raise CommandFailed(self._nobody()) from None
                    continue
                engines.answered()
                if found is None:
                    return
                if isinstance(found, Exception):
                    raise CommandFailed(f"Ray ended the run: {found}; go on with --resume") from found
                answer = pickle.loads(found)
                if isinstance(answer, str):
                    raise CommandFailed(f"no page can be read {answer}")
                yield answer
        finally:
            self._end(thread, arrived)

    @staticmethod
    def _end(thread: threading.Thread, arrived: queue.Queue[bytes | Exception | None]) -> None:
        """End the thread of a round, whatever the dataset still does.

        A thread that outlives its round would go on with the actors of the next one, or with another cluster.
        """
        thread.join(POLL_SECONDS)  # after its last answer the thread ends by itself
        if thread.is_alive():
            dismiss()
        patience = time.monotonic() + _END_SECONDS
        while thread.is_alive() and time.monotonic() < patience:
            with contextlib.suppress(queue.Empty):
                arrived.get(timeout=POLL_SECONDS)  # room for answers that the thread still puts
        if thread.is_alive():
            log.warning("Ray's dataset has not ended %g seconds after it was dismissed", _END_SECONDS)

    def _nobody(self) -> str:
        minutes, pool = attendance.LONELY_SECONDS / 60, self._pool
        return (
            f"no engine has started for {minutes:g} minutes: each takes {pool.num_cpus:g} CPUs and {pool.num_gpus:g} "
            "GPUs of one machine of the cluster, where others may have them (see `ray status`); go on with --resume"
        )

    def _fetch(self, rows: list[dict[str, bytes]], how: Round, arrived: queue.Queue[bytes | Exception | None]) -> None:
        """Put all answers of a round into ``arrived``, then None or the error that ended the round.

        Runs on a thread of its own, since iterating over a dataset has no timeout.
        """
        end: Exception | None = None
        try:
            for batch in self.dataset(rows, how).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                for answer in batch.column("answer").to_pylist():
                    arrived.put(answer)
        except Exception as error:  # ``answers`` raises the error on the thread that waits
            log.debug("the dataset ended", exc_info=True)
            end = error
        arrived.put(end)

    def dataset(self, rows: list[dict[str, bytes]], how: Round) -> Any:
        """Ray's dataset of the answers to a round's rows. Nothing is drawn or read until somebody iterates over it."""
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # else a plan is logged in every round
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = BLOCK_BYTES
        context.max_errored_blocks = -1  # pages that are lost are read in the next round
        context.wait_for_min_actors_s = -1
        pool = self._pool
        calls = ray.data.ActorPoolStrategy(
            size=pool.actors, max_concurrent_calls_per_actor=how.calls, max_tasks_in_flight_per_actor=how.in_flight,
            enable_true_multi_threading=True,
        )  # fmt: skip
        # Blocks of one row, so that a task draws one parcel, and in a round for lost pages one page.
        dataset: Any = ray.data.from_items(rows, override_num_blocks=len(rows))
        # The tasks that draw reserve no CPU of Ray; their number is limited here instead. When a machine is lost, its
        # actors start elsewhere and could reserve the last CPU; then no page could be drawn for them.
        if not self._joint:
            drawers = ray.data.TaskPoolStrategy(size=pool.drawing)
            dataset = dataset.flat_map(functools.partial(draw, drawing=self._drawing), num_cpus=0, compute=drawers)
        with warnings.catch_warnings():
            # max_restarts has no other way in up to Ray 2.63, the last version that the extra ``ray`` allows.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            return dataset.map_batches(
                PageActor, fn_constructor_args=(self._job,), batch_size=how.batch, batch_format="pyarrow",
                compute=calls, num_cpus=pool.num_cpus, num_gpus=pool.num_gpus, max_restarts=-1,
                max_task_retries=how.retries,
            )  # fmt: skip
