"""Reads all pages of a run on a cluster: a dataset of Ray Data whose pages are drawn by tasks and read by actors.

parcels of pages ─> draw (tasks) ─> pixels ─> PageActor (an engine each) ─> answers ─> the head: OUT
documents, whose pages are read together ───> PageActor, which draws them ──────┘

The head alone writes, page by page as without Ray, so that a page is never in the output twice; Ray Data holds the
drawing back while the engines, or the head, have enough to do. Pages that are lost with the machine that held them come
again in another round, alone, until it is known which of them is deadly.
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
from .reading import Answer, PageActor, ReadingJob

log = logging.getLogger(__name__)

BLOCK_BYTES = 16 << 20  # of drawn pages that go from machine to machine together
_AHEAD = 4  # batches of answers that wait for the head
_END_SECONDS = 20.0  # that a dataset has to end in, once nobody wants its answers


@dataclass(frozen=True)
class Round:
    """One reading of all pages that are left."""

    parcel: int  # pages that are drawn by one task, and lost with the actor that has them
    batch: int  # pages that an actor gets at once, or documents whose pages are read together
    calls: int  # batches that it works on at once
    ahead: int  # batches that it is sent, with those
    retries: int  # how often Ray gives a dead actor's batches to another one by itself


# A batch that dies takes its neighbours along; alone, a page answers for itself.
ALONE = Round(parcel=1, batch=1, calls=1, ahead=1, retries=1)


def rounds(batch: int, *, joint: bool) -> tuple[Round, ...]:
    """In batches first, then alone, twice: a machine may die under an innocent page.

    joint : pages of a document are read together. Documents come one by one, so that no actor waits for a batch that
    another one has.
    """
    if joint:
        return Round(1, 1, calls=batch, ahead=batch, retries=1), ALONE, ALONE
    return Round(PARCEL, batch, calls=2, ahead=4, retries=1), ALONE, ALONE


class ClusterRun:
    """One run over all documents, as ``server.command.run.Run`` is without Ray."""

    def __init__(
        self, job: ReadingJob, drawing: Drawing, pool: Pool, sink: Sink,
        head: Callable[[DocumentPlan], Mapping[str, Any]], open_source: Callable[[DocumentPlan], Document],
        progress: Progress, stop: threading.Event, *, batch: int,
    ) -> None:  # fmt: skip
        """open_source : for formats that want the pages once more when a document is written.
        batch : pages that an actor gets at once; two batches keep its slots busy."""
        self._job, self._drawing, self._pool, self._batch = job, drawing, pool, batch
        self._joint = job.together is not None
        self._sink, self._head, self._progress, self._stop = sink, head, progress, stop
        self._open_source = open_source
        self._left: dict[int, set[int]] = {}  # pages of documents that are being read, by the document's number
        self._done: set[int] = set()  # documents of which nothing is left
        self._keeping: Keeping[int] = Keeping(sink, progress)
        self._on_the_way: set[tuple[int, int]] = set()  # documents and pages that are being written

    def read_all(self, plans: Sequence[DocumentPlan]) -> None:
        """Read every page that is to be read; returns early when ``stop`` is set.

        Raises
        ------
        CommandFailed
            when no page can be read any more; those that were finished are kept.
        """
        for number, plan in enumerate(plans):
            if not plan.todo or plan.error is not None:
                self._done.add(number)
                if plan.error is None and not plan.whole and not plan.left:
                    self._publish(plan)  # killed after its last page, before it was published
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
                with contextlib.suppress(CommandFailed):  # of one that cannot be written either, which is left
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
        if self._joint:  # with one page all are read again; ``take`` knows those that have been kept
            left = [plan.todo if unread else () for plan, unread in zip(plans, left, strict=True)]
            rows = list(documents(plans, left, self._sink.pictures))
        else:
            rows = list(parcels(plans, left, self._sink.pictures, how.parcel))
        for answer in self.answers(rows, how):
            self.take(plans[answer.number], answer)
        self._settle(0)

    def take(self, plan: DocumentPlan, answer: Answer) -> None:
        """Keep one page, unless it has been kept: a task that is run again answers again."""
        number, index = answer.number, answer.result.page - 1
        if number in self._done:
            return
        if number not in self._left:
            self._left[number] = set(plan.todo)
        if index not in self._left[number] or (number, index) in self._on_the_way:
            return
        self._on_the_way.add((number, index))
        self._keeping.add(number, plan, answer.result, answer.pictures)
        self._settle(MOST)

    def _settle(self, most: int) -> None:
        """Deal with pages that have been written, until no more than ``most`` are on their way."""
        for number, plan, result in self._keeping.settle(most):
            self._on_the_way.remove((number, result.page - 1))
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
                self.take(plan, Answer(number, PageResult(index + 1, "failed", why), {}))

    def answers(self, rows: list[dict[str, bytes]], how: Round) -> Iterator[Answer]:
        """What the actors say, as it comes, looking up now and then whether the user wants an end.

        Raises
        ------
        CommandFailed
            when no actor can be started, or Ray ends the run. One that dies and does not come back ends the round.
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
                            return  # what is left comes in the next round
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
        """End the thread of a round, whatever the dataset still does: a thread that outlives its round would go on with
        actors, and with a cluster, that are another's by then."""
        thread.join(POLL_SECONDS)  # after its last word it ends by itself
        if thread.is_alive():
            dismiss()
        patience = time.monotonic() + _END_SECONDS
        while thread.is_alive() and time.monotonic() < patience:
            with contextlib.suppress(queue.Empty):
                arrived.get(timeout=POLL_SECONDS)  # room for what the thread still has to say
        if thread.is_alive():
            log.warning("Ray's dataset has not ended %g seconds after it was dismissed", _END_SECONDS)

    def _nobody(self) -> str:
        minutes, pool = attendance.LONELY_SECONDS / 60, self._pool
        return (
            f"no engine has started for {minutes:g} minutes: each takes {pool.num_cpus:g} CPUs and {pool.num_gpus:g} "
            "GPUs of one machine of the cluster, where others may have them (see `ray status`); go on with --resume"
        )

    def _fetch(self, rows: list[dict[str, bytes]], how: Round, arrived: queue.Queue[bytes | Exception | None]) -> None:
        """Runs on a thread of its own: a dataset cannot be asked to wait for only so long."""
        end: Exception | None = None
        try:
            for batch in self.dataset(rows, how).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                for answer in batch.column("answer").to_pylist():
                    arrived.put(answer)
        except Exception as error:  # told by the thread that waits
            log.debug("the dataset ended", exc_info=True)
            end = error
        arrived.put(end)

    def dataset(self, rows: list[dict[str, bytes]], how: Round) -> Any:
        """Ray's dataset of the answers to a round's rows; nothing is read before somebody iterates."""
        import ray.data

        logging.getLogger("ray.data").setLevel(
            logging.ERROR
        )  # its errors come as exceptions, its plans interest nobody
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = BLOCK_BYTES
        context.max_errored_blocks = -1  # what is lost comes in the next round
        context.wait_for_min_actors_s = -1
        pool = self._pool
        calls = ray.data.ActorPoolStrategy(
            size=pool.actors, max_concurrent_calls_per_actor=how.calls, max_tasks_in_flight_per_actor=how.ahead,
            enable_true_multi_threading=True,
        )  # fmt: skip
        # Blocks of one row: a task is a parcel, and a round for lost pages has tasks of a page.
        dataset: Any = ray.data.from_items(rows, override_num_blocks=len(rows))
        # The tasks that draw are counted here and ask Ray for no CPU: when a machine is lost, the engines that are
        # started elsewhere would take the last one, and wait for pages that nobody can draw.
        if not self._joint:
            drawers = ray.data.TaskPoolStrategy(size=pool.drawing)
            dataset = dataset.flat_map(functools.partial(draw, drawing=self._drawing), num_cpus=0, compute=drawers)
        with warnings.catch_warnings():
            # How often an actor is started again can be said in no other way up to 2.63, the last that the extra takes.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            return dataset.map_batches(
                PageActor, fn_constructor_args=(self._job,), batch_size=how.batch, batch_format="pyarrow",
                compute=calls, num_cpus=pool.num_cpus, num_gpus=pool.num_gpus, max_restarts=-1,
                max_task_retries=how.retries,
            )  # fmt: skip
