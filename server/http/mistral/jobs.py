"""/v1/ocr/jobs: long documents without a connection that stays open for minutes and that proxies would cut.

A job is a request to /v1/ocr that is answered with an id at once, read in its turn by one of a few threads, and kept
for a while afterwards (``job_files``). A job belongs to the API key that submitted it.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import falcon

from server.api_errors import ApiError, ClientGone, Unavailable, error_body, internal_error, translate

from .. import schema
from ..auth import owner_of
from ..endpoint import read_json
from ..in_flight import RequestsInFlight
from ..logs import RequestRecord
from ..metrics import Metrics
from ..running import RunningRequest
from .job_files import JobFiles
from .ocr import OcrReader, Order, in_mistrals_words
from .schema import OcrBody, OcrRequest

log = logging.getLogger(__name__)

WORKERS = 2  # jobs read at once, so that a short one does not wait for a book
RETRY_SECONDS = 2.0  # seconds until a job is tried again when the server is full, or its model is being exported
POLL_SECONDS = 5  # seconds that clients are told to wait before they ask again

_SHUT_DOWN = Unavailable("the server was shut down before the job had ended; submit it again", code="shutting_down")


@dataclass(eq=False)
class OcrJob:
    """One job that has not ended yet."""

    order: Order
    owner: str
    record: RequestRecord
    id: str = field(default_factory=lambda: f"ocrjob-{secrets.token_hex(16)}")
    created: float = field(default_factory=time.time)
    started: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def describe(self, status: str = "", error: ApiError | None = None) -> dict[str, Any]:
        """The job's description for clients. ``status``: of an ended job; by default queued or running."""
        return {
            "id": self.id,
            "object": "ocr.job",
            "status": status or ("queued" if self.started is None else "running"),
            "model": self.order.asked.model,
            "created_at": int(self.created),
            "started_at": self.started and int(self.started),
            "finished_at": int(time.time()) if status else None,
            "pages_total": self.record.pages,
            "pages_done": self.record.pages_done,
            "error": None if error is None else _error(error),
            "owner": self.owner,
        }


class OcrJobs:
    """Runs jobs, and knows them until they are deleted."""

    def __init__(
        self, in_flight: RequestsInFlight, reader: OcrReader, metrics: Metrics, files: JobFiles, max_jobs: int
    ) -> None:  # fmt: skip
        """max_jobs : jobs that wait or run at once."""
        self._in_flight, self._reader, self._metrics = in_flight, reader, metrics
        self._files, self._max_jobs = files, max_jobs
        self._lock = threading.Lock()  # guards the jobs
        self._jobs: dict[str, OcrJob] = {}
        self._queue: queue.SimpleQueue[OcrJob | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closing = False

    def submit(self, body: OcrBody, owner: str, address: str, client: str) -> dict[str, Any]:
        """Take a job. ``client``: whose share of the model the job takes.

        Raises
        ------
        ApiError, InvalidInput
            for a request that cannot be carried out, or too many jobs.
        """
        if self._in_flight.draining:
            raise Unavailable("the server is shutting down", code="shutting_down")
        with self._lock:
            self._refuse_too_many()
        try:
            self._files.prepare()
        except OSError as error:
            log.error("the folder of jobs cannot be written: %s", error)
            raise Unavailable("this server cannot keep jobs; its log says why", code="jobs_unavailable") from error
        order = self._reader.order(body, owner)
        record = RequestRecord(
            uuid.uuid4().hex, Jobs.path, self._metrics, asked=order.asked.model, address=address, client=client
        )
        job = OcrJob(order, owner, record)
        with self._lock:
            self._refuse_too_many()
            self._jobs[job.id] = job
            if len(self._threads) < WORKERS:
                self._threads.append(threading.Thread(target=self._work, name="ocr-job", daemon=True))
                self._threads[-1].start()
        self._queue.put(job)
        return job.describe()

    def find(self, job_id: str, owner: str) -> dict[str, Any]:
        """A job's description, with the result of one that has succeeded.

        Raises
        ------
        ApiError
            with status 404 when there is none.
        """
        with self._lock:
            job = self._jobs.get(job_id)
            found = self._files.load(job_id) if job is None else job.describe()
        if found is None or found["owner"] != owner:
            raise ApiError(
                404, f"there is no job {job_id[:80]!r}; jobs are kept for a while after their end, and those that have "
                "not ended do not survive a restart of the server", param="job_id", code="job_not_found",
            )  # fmt: skip
        return {**found, "result": self._files.result(job_id) if found["status"] == "succeeded" else None}

    def of(self, owner: str) -> list[dict[str, Any]]:
        """All jobs of an owner without their results, the latest first."""
        with self._lock:
            jobs = {job.id: job.describe() for job in self._jobs.values()}
            for found in self._files.all():
                jobs.setdefault(found["id"], found)
        return sorted((job for job in jobs.values() if job["owner"] == owner), key=lambda job: -job["created_at"])

    def cancel(self, job_id: str, owner: str) -> dict[str, Any]:
        """End a job early; does nothing for a job that has ended."""
        found = self.find(job_id, owner)
        with self._lock:
            job = self._jobs.get(job_id)
        if job is not None:
            job.cancelled.set()
        return found

    def delete(self, job_id: str, owner: str) -> None:
        """End a job and delete its files."""
        self.cancel(job_id, owner)
        with self._lock:
            self._jobs.pop(job_id, None)
            self._files.delete(job_id)

    def close(self) -> None:
        """Let the threads write down how their jobs ended. Called after requests in flight have been ended."""
        self._closing = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(RETRY_SECONDS + 1.0)

    def _refuse_too_many(self) -> None:
        if len(self._jobs) >= self._max_jobs:
            raise Unavailable(
                f"{len(self._jobs)} jobs are waiting or running (--max-jobs); try again later", code="jobs_full",
                retry_after=30,
            )  # fmt: skip

    # The following methods run on the jobs' threads.

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                self._carry_out(job)
            except Exception:
                log.exception("job %s was lost", job.id)
            finally:
                with self._lock:
                    self._jobs.pop(job.id, None)

    def _carry_out(self, job: OcrJob) -> None:
        status, result, problem = "succeeded", None, None
        try:
            result = self._read(job)
        except ClientGone:
            status = "cancelled"
            job.record.finish("client_gone")
        except Exception as error:
            problem = translate(error)
            if problem is None:
                log.exception("unexpected error in job %s", job.id)
                problem = internal_error()
            status = "failed"
            job.record.finish("error", status=problem.status_code, reason=problem.message)
        with self._lock:
            if job.id in self._jobs:  # the job was not deleted
                self._files.save(job.describe(status, problem), result)
                del self._jobs[job.id]

    def _read(self, job: OcrJob) -> dict[str, Any]:
        with ExitStack() as held:
            running = self._start(job, held)
            text, finished = running.collect()
            if finished.detail == "cancelled":
                raise _SHUT_DOWN
            return self._reader.answer(job.order, running, text, finished)

    def _start(self, job: OcrJob, held: ExitStack) -> RunningRequest:
        """Begin a job as soon as there is a place and a model. held : places and leases until the job's end."""
        prompt = job.order.asked.prompt
        files = list(prompt.files)  # starting removes the documents from the prompt
        while True:
            if job.cancelled.is_set():
                raise ClientGone
            if self._closing:
                raise _SHUT_DOWN
            prompt.files[:] = files
            try:
                with ExitStack() as taken:
                    taken.enter_context(self._in_flight.place())
                    job.started = job.started or time.time()
                    with in_mistrals_words():
                        running = self._in_flight.start(job.order.asked, job.record, job.cancelled.is_set)
                    taken.enter_context(running)
                    held.push(taken.pop_all())
                return running
            except Unavailable as error:
                if error.error_code == "shutting_down":
                    raise
            job.cancelled.wait(RETRY_SECONDS)


class Jobs:
    """Submit and list."""

    path = "/v1/ocr/jobs"

    def __init__(self, jobs: OcrJobs, max_body_bytes: int) -> None:
        self._jobs, self._max_body_bytes = jobs, max_body_bytes
        self._reading = threading.Semaphore(2)  # bodies parsed at once

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        with self._reading:
            body = schema.parse(read_json(req, self._max_body_bytes), OcrRequest)
            req.context["model"] = body.model  # for the log
            client = str(req.context.get("client") or req.remote_addr)
            made = self._jobs.submit(body, owner_of(req), req.remote_addr, client)
        resp.status = falcon.HTTP_202
        resp.set_headers({"Location": f"{self.path}/{made['id']}", "Retry-After": str(POLL_SECONDS)})
        resp.media = _told(made)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = {"object": "list", "data": [_told(job) for job in self._jobs.of(owner_of(req))]}


class JobById:
    """One job: its state and result, and its deletion."""

    def __init__(self, jobs: OcrJobs) -> None:
        self._jobs = jobs

    def on_get(self, req: falcon.Request, resp: falcon.Response, job_id: str) -> None:
        found = self._jobs.find(job_id, owner_of(req))
        if found["finished_at"] is None:
            resp.set_header("Retry-After", str(POLL_SECONDS))
        resp.media = _told(found)

    def on_delete(self, req: falcon.Request, resp: falcon.Response, job_id: str) -> None:
        self._jobs.delete(job_id, owner_of(req))
        resp.media = {"id": job_id, "object": "ocr.job", "deleted": True}


class JobCancel:
    """Ends a job early."""

    def __init__(self, jobs: OcrJobs) -> None:
        self._jobs = jobs

    def on_post(self, req: falcon.Request, resp: falcon.Response, job_id: str) -> None:
        resp.media = _told(self._jobs.cancel(job_id, owner_of(req)))


def _told(job: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job.items() if name != "owner"}


def _error(error: ApiError) -> dict[str, Any]:
    found: dict[str, Any] = error_body(error.status_code, error.message, error.param, error.error_code)["error"]
    return found
