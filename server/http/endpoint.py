"""What the two generation endpoints share: reading the body, starting the job, answering plain or streamed."""

from __future__ import annotations

import logging
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import falcon

from models.errors import ContextExceeded
from runtime.requests import Finished
from server.api_errors import ApiError, BadRequest, ClientGone, TooLarge, internal_error, translate

from . import schema, sse
from .generate import Generator, Job
from .logs import RequestRecord
from .messages import Prompt
from .metrics import Metrics

log = logging.getLogger(__name__)

READERS = 4  # bodies that are parsed at once: each can be 50 MB, twice while it is read


class GenerationEndpoint:
    """A Falcon resource; subclasses say how a request is read and an answer is written."""

    path: ClassVar[str]
    request_model: ClassVar[Any]
    content: ClassVar[str]  # the body's field that has the conversation, images and all

    def __init__(self, generator: Generator, metrics: Metrics, max_body_bytes: int) -> None:
        self._generator, self._metrics = generator, metrics
        self._max_body_bytes = max_body_bytes
        self._reading = threading.Semaphore(READERS)

    def prompt(self, body: Any) -> Prompt:
        """The conversation of a checked body.

        Raises
        ------
        InvalidInput, ApiError
            when it asks for something that is not supported.
        """
        raise NotImplementedError

    def start(
        self, req: falcon.Request, body: Any, record: RequestRecord, is_gone: Callable[[], bool]
    ) -> tuple[Any, Job]:
        """Begin the job; returns it with what of the body its answer is written from."""
        prompt = self.prompt(body)
        body = body.model_copy(update={self.content: []})  # the rest of it lives as long as the answer
        job = self._generator.start(
            prompt, body.model, schema.settings_of(body), schema.reading_of(body), record, is_gone
        )
        return body, job

    def answer(self, body: Any, job: Job, text: str, finished: Finished) -> dict[str, Any]:
        """The JSON document of a whole answer."""
        raise NotImplementedError

    def chunks(self, body: Any, job: Job) -> Iterator[bytes]:
        """The server-sent events of an answer; ``ClientGone`` may pass through."""
        raise NotImplementedError

    def failure(self, body: Any, record: RequestRecord, error: ApiError) -> bytes:
        """The event that ends a stream which has begun and cannot go on."""
        raise NotImplementedError

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        record = RequestRecord(uuid.uuid4().hex, self.path, self._metrics, address=req.remote_addr)
        record.client = str(req.context.get("client") or req.remote_addr)
        req.context["recorded"] = True  # this line is the request's
        resp.set_header("X-Request-Id", record.id)
        try:
            self._serve(req, resp, record)
        except BaseException as error:
            known = _translated(error) or internal_error()
            record.finish(_outcome(error), status=known.status_code, reason=known.message)
            raise

    def _serve(self, req: falcon.Request, resp: falcon.Response, record: RequestRecord) -> None:
        self._generator.enter()
        try:
            with self._reading:
                body = schema.parse(read_json(req, self._max_body_bytes), self.request_model)
            record.stream, record.asked = bool(body.stream), body.model or ""
            is_gone = req.env.get("waitress.client_disconnected", lambda: False)
            body, job = self.start(req, body, record, is_gone)
        except BaseException as error:
            self._generator.leave()
            if isinstance(error, ContextExceeded):
                raise BadRequest(str(error), param=self.content, code="context_length_exceeded") from error
            raise
        if not record.stream:
            try:
                text, finished = job.collect()
                resp.media = self.answer(body, job, text, finished)
            finally:
                job.close()
            return
        resp.content_type = "text/event-stream; charset=utf-8"
        resp.set_headers(sse.HEADERS)
        resp.stream = sse.EventStream(self._guarded(body, job), job.close)

    def _guarded(self, body: Any, job: Job) -> Iterator[bytes]:
        """The chunks; a failure after the headers becomes a last event, for it can be no status any more."""
        try:
            yield from self.chunks(body, job)
        except ClientGone:
            job.close("client_gone")
        except Exception as error:
            known = translate(error)
            if known is None:
                log.exception("unexpected error while streaming %s", job.record.id)
                known = internal_error()
            job.record.finish("error", status=known.status_code, reason=known.message)
            job.close("error")
            yield self.failure(body, job.record, known)


def read_json(req: falcon.Request, limit: int) -> bytes:
    """The body of a request.

    Raises
    ------
    ApiError
        when it is none, is larger than ``limit`` bytes, or says that it is no JSON.
    """
    size = req.content_length or 0
    if size > limit:
        raise TooLarge(f"the body has {size} bytes; the limit is {limit >> 20} MiB (--max-body-mb)")
    # Asking for JSON also keeps web pages of other origins out: without leave they send plain types, or none.
    media_type = (req.content_type or "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise ApiError(
            415, f"the Content-Type must be application/json, not {media_type[:80] or 'missing'}",
            code="unsupported_media_type",
        )  # fmt: skip
    raw = _unpacked(req.bounded_stream.read(), (req.get_header("Content-Encoding") or "").strip().lower(), limit)
    if not raw:
        raise BadRequest("the body is empty; it must be a JSON object", code="invalid_json")
    return raw


def _unpacked(raw: bytes, encoding: str, limit: int) -> bytes:
    """The body without its compression, which can make a small body very large: never more than ``limit`` bytes."""
    if encoding in ("", "identity"):
        return raw
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ApiError(
            415, f"the Content-Encoding {encoding[:40]!r} is not supported; send the body plain or as gzip",
            code="unsupported_content_encoding", headers={"Accept-Encoding": "gzip, deflate"},
        )  # fmt: skip
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as the header says
    try:
        unpacked = unpacker.decompress(raw, limit + 1)
    except zlib.error as error:
        raise BadRequest(f"the body is no valid {encoding}: {error}", code="invalid_encoding") from None
    if len(unpacked) > limit:
        raise TooLarge(f"the body has more than {limit} bytes unpacked; the limit is {limit >> 20} MiB (--max-body-mb)")
    if not unpacker.eof:
        raise BadRequest(f"the body's {encoding} ends too early; it is not whole", code="invalid_encoding")
    return unpacked


def _outcome(error: BaseException) -> str:
    if isinstance(error, ClientGone):
        return "client_gone"
    known = _translated(error)
    if known is None or known.status_code == 500:
        return "error"
    return "refused" if known.status_code == 503 else "rejected"


def _translated(error: BaseException) -> ApiError | None:
    return translate(error) if isinstance(error, Exception) else None
