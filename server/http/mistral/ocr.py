"""POST /v1/ocr: a document in, its pages out, in Mistral's form.

The document is read like a ``file`` part of a chat message; only request and answer have Mistral's form.
"""

from __future__ import annotations

import base64
import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import falcon

from models.grounding import Box
from runtime.requests import Finished
from server.api_errors import ApiError
from server.fetch import Fetcher

from .. import schema
from ..answers import extension
from ..asked import Asked
from ..auth import owner_of
from ..endpoint import Endpoint
from ..images import decode_data_url
from ..messages import Prompt
from ..running import RunningRequest
from .files import FileStore
from .pages import MistralPageWriter
from .schema import OcrBody, OcrRequest, check_supported, page_numbers

MISTRALS_OWN = re.compile(r"mistral-ocr(-[\w.-]+)?")  # the name that clients have built in
# Pages are read to their end: Mistral's form has no field for a budget.
BUDGET = {"max_new_tokens": 8192}


@dataclass(frozen=True)
class Order:
    """A checked request, and what its answer is written from."""

    asked: Asked
    body: OcrBody
    size: int  # size of the document in bytes


class OcrReader:
    """Turns bodies into orders, and read documents into answers; shared by /v1/ocr and /v1/ocr/jobs."""

    def __init__(self, files: FileStore, fetcher: Fetcher, max_bytes: int, model: str) -> None:
        """model : the model that Mistral's own names mean here."""
        self._files, self._fetcher = files, fetcher
        self._max_bytes, self._model = max_bytes, model

    def order(self, body: OcrBody, owner: str) -> Order:
        """Check a request and fetch its document.

        Raises
        ------
        ApiError, InvalidInput
            for unsupported fields, and a document that is missing or too large.
        """
        check_supported(body)
        reading = schema.ReadingOptions(task=body.task, boxes=True, pages=page_numbers(body.pages))
        name, place = body.document.place()
        content = self._content(name, place.strip(), owner)
        url = f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"
        model = self._model if body.model is None or MISTRALS_OWN.fullmatch(body.model) else body.model
        light = body.model_copy(update={"document": None})  # the body lives as long as the answer
        # Mistral's form has no field for a page's turn.
        settings = {**schema.settings_of(light), "orient": "off"}
        asked = Asked(Prompt(files=[url]), model, settings, reading, floor=BUDGET)
        return Order(asked, light, len(content))

    def answer(self, order: Order, running: RunningRequest, text: str, finished: Finished) -> dict[str, Any]:
        """The whole answer to a request that has ended and is not closed yet."""
        report = running.report()
        report.pop("blocks", None)
        writer = MistralPageWriter(order.body, running.draw)
        boxes: dict[int, list[Box]] = {}
        for box in report.pop("boxes"):
            boxes.setdefault(box["page"], []).append(Box(box["label"], box["text"], tuple(box["box"])))
        pages = [
            writer.page(page, text[page["start"] : page["end"]], boxes.get(page["page"], []))
            for page in report["pages"]
        ]
        return {
            "pages": pages,
            "model": order.asked.model,
            "usage_info": {"pages_processed": len(pages), "doc_size_bytes": order.size},
            "document_annotation": None,
            "ocr": extension(finished, running.record.id, "max_tokens", report),
        }

    def _content(self, name: str, place: str, owner: str) -> bytes:
        if name == "file_id":
            return self._files.get(place, owner).content
        if place[:5].lower() == "data:":
            return decode_data_url(place, self._max_bytes, "file", name)
        if (file := self._files.signed_url(place)) is not None:
            return file.content
        with in_mistrals_words():
            return self._fetcher.fetch(place, time.monotonic() + self._fetcher.timeout)


class Ocr:
    """Mistral's OCR."""

    path = "/v1/ocr"

    def __init__(self, endpoint: Endpoint, reader: OcrReader) -> None:
        self._endpoint, self._reader = endpoint, reader

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        with self._endpoint.exchange(req, resp, self.path, "document") as exchange:
            order = self._reader.order(exchange.body(OcrRequest), owner_of(req))
            with in_mistrals_words():
                running = exchange.start(order.asked)
            resp.media = self._reader.answer(order, running, *running.collect())


@contextlib.contextmanager
def in_mistrals_words() -> Iterator[None]:
    """Name Mistral's fields in the block's errors."""
    try:
        yield
    except ApiError as error:
        raise _translated(error) from error


def _translated(error: ApiError) -> ApiError:
    """The error in Mistral's terms: field ``document``, and ``pages`` from 0."""
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
