"""The actors that read pages: each has one engine, and gets enough pages at once to keep the engine's slots taken."""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from models.model_errors import ConfigError, InvalidInput
from runtime.documents import never
from runtime.runtime_errors import RuntimeUnavailable
from server.command.command_errors import CommandFailed, Interrupted
from server.command.page import failed, read_page, read_together, with_pictures
from server.command.readers import Reader
from server.writers import PageResult

from .drawing import Drawing, Wanted, drawn_of, open_wanted
from .pinning import pin

log = logging.getLogger(__name__)

MakeReader = Callable[[], Reader]


@dataclass(frozen=True)
class ReadingJob:
    """What an actor has to know of the run; pickled on its way."""

    make_reader: MakeReader
    model_files: str  # digest of the export's files, the same on every machine; "" where the reader has no export
    min_confidence: float = 0.0
    cpus: int = 0  # that the engine computes on; 0: on a GPU
    together: Drawing | None = None  # set where all pages of a document are read together; the actor draws them then


@dataclass(frozen=True)
class PageAnswer:
    """One page that was read, on its way to the head."""

    number: int  # of the document in the run
    result: PageResult
    pictures: dict[str, bytes]


class PageActor:
    """An engine in a process of Ray. Ray Data makes the actors and calls each with several batches at the same time."""

    def __init__(self, job: ReadingJob) -> None:
        """Load the model. Where that fails, the reason is the answer to the first batch, and ends the run."""
        self._job = job
        self._fatal = ""
        self._pinned = pin(job.cpus) if job.cpus else None  # first: threads inherit the CPUs of their process
        try:
            self._reader = job.make_reader()
            slots = self._reader.start()
            self._pool = ThreadPoolExecutor(2 * slots, "page")
            self._compare()
        except (CommandFailed, ConfigError, InvalidInput, RuntimeUnavailable) as error:
            self._fatal = f"{_where()}: {error}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Read a batch of rows: drawn pages, or whole documents (see ``drawing``).

        Each answer is pickled: a ``PageAnswer``, or as a str the reason why the run cannot go on.
        """
        rows = batch.to_pylist() if hasattr(batch, "to_pylist") else batch
        if self._fatal:
            return {"answer": [pickle.dumps(self._fatal)]}
        try:
            answers = self._pool.map(self._read if self._job.together is None else self._read_together, rows)
            return {"answer": [pickle.dumps(answer) for some in answers for answer in some]}
        except (CommandFailed, Interrupted):
            log.exception("the engine has stopped; another actor takes its place")
            logging.shutdown()
            os._exit(1)  # Ray then starts an actor anew, with a new engine, and sends the batch to that one

    def _read(self, row: dict[str, Any]) -> list[PageAnswer]:
        index, name = row["index"], row["name"].decode("utf-8", "surrogateescape")
        result, page = read_page(
            self._reader, lambda: drawn_of(row), index, name, min_confidence=self._job.min_confidence
        )
        return [PageAnswer(row["number"], *with_pictures(pickle.loads(row["pictures"]), result, page, name))]

    def _read_together(self, row: dict[str, Any]) -> list[PageAnswer]:
        wanted: Wanted
        (wanted,) = pickle.loads(row["parcel"])
        started, name = time.monotonic(), wanted.source.name
        assert self._job.together is not None
        try:
            document = open_wanted(wanted, self._job.together)
        except InvalidInput as error:
            return [PageAnswer(wanted.number, failed(index, str(error), started), {}) for index in wanted.pages]
        with document:
            read = read_together(self._reader, document, wanted.pages, never, min_confidence=self._job.min_confidence)
            return [
                PageAnswer(wanted.number, *with_pictures(wanted.pictures, result, page, name)) for result, page in read
            ]

    def _compare(self) -> None:
        files = getattr(self._reader, "model_files", lambda: "")()
        if self._job.model_files and files != self._job.model_files:
            raise CommandFailed(
                "the export of the model here is another than the one where the run was started; bring that one here "
                "(ocr-onnx pack, ocr-onnx unpack)"
            )


def _where() -> str:
    import ray

    return f"on {ray.util.get_node_ip_address()}"
