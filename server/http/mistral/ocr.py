"""POST /v1/ocr: a document in, its pages out, as Mistral's clients speak of them.

The document goes the way of a ``file`` part of a chat message. What is Mistral's own is on either side of that way.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import falcon

from models.grounding import Box
from runtime.requests import Finished
from server.api_errors import ApiError
from server.fetch import Fetcher

from .. import schema
from ..answers import extension
from ..auth import owner_of
from ..endpoint import GenerationEndpoint
from ..generate import Generator, Job
from ..images import decode_data_url
from ..logs import RequestRecord
from ..messages import Prompt
from ..metrics import Metrics
from .files import FileStore
from .pages import PageWriter
from .schema import OcrRequest, check_supported, page_numbers

MISTRALS_OWN = re.compile(r"mistral-ocr(-[\w.-]+)?")  # what clients have built in
# A page is read to its end: Mistral's form has no field for a budget.
BUDGET = {"max_new_tokens": 8192}


@dataclass
class Order:
    """A checked request: what the generator needs, and what the answer is written from."""

    body: Any
    model: str
    prompt: Prompt
    size: int  # bytes of the document
    reading: schema.Reading = field(init=False)
    settings: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.reading = schema.Reading(task=self.body.task, boxes=True, pages=page_numbers(self.body.pages))
        self.settings = schema.settings_of(self.body)


class OcrReader:
    """Turns requests into jobs and jobs into answers; /v1/ocr and /v1/ocr/jobs share it."""

    def __init__(self, generator: Generator, files: FileStore, fetcher: Fetcher, max_bytes: int, model: str) -> None:
        """model : what Mistral's own model names mean here."""
        self._generator, self._files, self._fetcher = generator, files, fetcher
        self._max_bytes, self._model = max_bytes, model

    def order(self, body: Any, owner: str) -> Order:
        """Check a request and bring its document here.

        Raises
        ------
        ApiError, InvalidInput
            for what is not supported, is not there, or is too large.
        """
        check_supported(body)
        page_numbers(body.pages)
        name, place = body.document.place()
        content = self._content(name, place.strip(), owner)
        url = f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"
        model = self._model if body.model is None or MISTRALS_OWN.fullmatch(body.model) else body.model
        light = body.model_copy(update={"document": None})  # the rest of it lives as long as the answer
        return Order(light, model, Prompt(files=[url]), len(content))

    def start(self, order: Order, record: RequestRecord, is_gone: Callable[[], bool]) -> Job:
        """See ``Generator.start``.

        Raises
        ------
        ClientGone, ApiError, and what ``errors.translate`` knows
        """
        try:
            return self._generator.start(
                order.prompt, order.model, order.settings, order.reading, record, is_gone, floor=BUDGET
            )
        except ApiError as error:
            raise _in_mistrals_words(error) from error

    def answer(self, order: Order, job: Job, text: str, finished: Finished) -> dict[str, Any]:
        """The whole answer, from a job that has ended and is not closed yet."""
        report = job.report()
        report.pop("blocks", None)
        writer = PageWriter(order.body, job.draw)
        boxes: dict[int, list[Box]] = {}
        for box in report.pop("boxes"):
            boxes.setdefault(box["page"], []).append(Box(box["label"], box["text"], tuple(box["box"])))
        pages = [
            writer.page(page, text[page["start"] : page["end"]], boxes.get(page["page"], []))
            for page in report["pages"]
        ]
        return {
            "pages": pages,
            "model": order.model,
            "usage_info": {"pages_processed": len(pages), "doc_size_bytes": order.size},
            "document_annotation": None,
            "ocr": extension(finished, job.record.id, "max_tokens", report),
        }

    def _content(self, name: str, place: str, owner: str) -> bytes:
        if name == "file_id":
            return self._files.get(place, owner).content
        if place[:5].lower() == "data:":
            return decode_data_url(place, self._max_bytes, "file", name)
        if (file := self._files.signed_url(place)) is not None:
            return file.content
        try:
            return self._fetcher.fetch(place, time.monotonic() + self._fetcher.timeout)
        except ApiError as error:
            raise _in_mistrals_words(error) from error


class Ocr(GenerationEndpoint):
    """Mistral's OCR."""

    path = "/v1/ocr"
    request_model = OcrRequest
    content = "document"

    def __init__(self, generator: Generator, metrics: Metrics, max_body_bytes: int, reader: OcrReader) -> None:
        super().__init__(generator, metrics, max_body_bytes)
        self._reader = reader

    def start(
        self, req: falcon.Request, body: Any, record: RequestRecord, is_gone: Callable[[], bool]
    ) -> tuple[Order, Job]:
        order = self._reader.order(body, owner_of(req))
        return order, self._reader.start(order, record, is_gone)

    def answer(self, body: Order, job: Job, text: str, finished: Finished) -> dict[str, Any]:
        return self._reader.answer(body, job, text, finished)


def _in_mistrals_words(error: ApiError) -> ApiError:
    """The same error for a client that has sent a ``document`` with ``pages`` from 0."""
    message, param = error.message, error.param
    if param == "ocr.pages":
        param = "pages"
        message = message.partition("; choose some with")[0]
        message = re.sub(r"page (\d+) is", lambda found: f"page {int(found[1]) - 1} (counted from 0) is", message)
    elif param in ("image_url", "file_data"):
        param = "document"
        message = message.replace("an image", "a document").replace("the image", "the document")
    error.message, error.param = message, param
    return error
