"""Shared by the endpoints that read documents: an exchange, from a body to an answer, plain or streamed."""

from __future__ import annotations

import logging
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import falcon

from models.model_errors import ContextExceeded
from server.api_errors import ApiError, BadRequest, ClientGone, TooLarge, internal_error, translate

from . import schema, sse
from .asked import Asked
from .in_flight import RequestsInFlight
from .logs import RequestRecord
from .metrics import Metrics
from .running import RunningRequest

log = logging.getLogger(__name__)

READERS = 4  # bodies parsed at once: each can be 50 MB, and is in memory twice while parsed


class Exchange:
    """One POST. All that it holds is given back when its ``with`` block ends, or its stream."""

    def __init__(
        self, endpoint: Endpoint, req: falcon.Request, resp: falcon.Response, record: RequestRecord, content: str,
        held: ExitStack,
    ) -> None:  # fmt: skip
        self.record = record
        self._endpoint, self._req, self._resp = endpoint, req, resp
        self._content, self._held = content, held
        self._is_gone: Callable[[], bool] = req.env.get("waitress.client_disconnected", lambda: False)

    def body(self, form: type[schema.Body]) -> schema.Body:
        """The checked body.

        Raises
        ------
        ApiError, InvalidInput
            for a body that is no JSON, is too large, or asks for something unsupported.
        """
        body = self._endpoint.read(self._req, form)
        self.record.stream, self.record.asked = bool(body.stream), body.model or ""
        return body

    def start(self, asked: Asked) -> RunningRequest:
        """Begin the request, which ends with the exchange. Raises as ``RequestsInFlight.start``."""
        try:
            return self._held.enter_context(self._endpoint.in_flight.start(asked, self.record, self._is_gone))
        except ContextExceeded as error:
            raise BadRequest(str(error), param=self._content, code="context_length_exceeded") from error

    def stream(self, running: RunningRequest, chunks: Iterator[bytes], failure: Callable[[ApiError], bytes]) -> None:
        """Answer with server-sent events, after the ``with`` block has ended.

        failure : makes the event that ends a stream after an error.
        """
        self._resp.content_type = "text/event-stream; charset=utf-8"
        self._resp.set_headers(sse.HEADERS)
        self._resp.stream = sse.EventStream(_guarded(running, chunks, failure), self._held.pop_all().close)


class Endpoint:
    """Shared by resources for their exchanges."""

    def __init__(self, in_flight: RequestsInFlight, metrics: Metrics, max_body_bytes: int) -> None:
        self.in_flight = in_flight
        self._metrics, self._max_body_bytes = metrics, max_body_bytes
        self._reading = threading.Semaphore(READERS)

    @contextmanager
    def exchange(self, req: falcon.Request, resp: falcon.Response, path: str, content: str) -> Iterator[Exchange]:
        """Take a place for a request, and log how the request ended.

        content : the body's field that has the conversation or the document.

        Raises
        ------
        Unavailable
            when there is no place.
        """
        record = RequestRecord(uuid.uuid4().hex, path, self._metrics, address=req.remote_addr)
        record.client = str(req.context.get("client") or req.remote_addr)
        req.context["recorded"] = True  # this log line is the request's
        resp.set_header("X-Request-Id", record.id)
        try:
            with ExitStack() as held:
                held.enter_context(self.in_flight.place())
                yield Exchange(self, req, resp, record, content, held)
        except BaseException as error:
            known = _translated(error) or internal_error()
            record.finish(_outcome(error), status=known.status_code, reason=known.message)
            raise

    def read(self, req: falcon.Request, form: type[schema.Body]) -> schema.Body:
        """See ``Exchange.body``. Parses a few bodies at a time."""
        with self._reading:
            return schema.parse(read_json(req, self._max_body_bytes), form)


def _guarded(running: RunningRequest, chunks: Iterator[bytes], failure: Callable[[ApiError], bytes]) -> Iterator[bytes]:
    """The chunks; an error after the headers becomes a last event, as the status is already sent."""
    try:
        yield from chunks
    except ClientGone:
        running.close("client_gone")
    except Exception as error:
        known = translate(error)
        if known is None:
            log.exception("unexpected error while streaming %s", running.record.id)
            known = internal_error()
        running.record.finish("error", status=known.status_code, reason=known.message)
        running.close("error")
        yield failure(known)


def read_json(req: falcon.Request, limit: int) -> bytes:
    """The body of a request.

    Raises
    ------
    ApiError
        when the body is no JSON, is larger than ``limit`` bytes, or has another content type.
    """
    size = req.content_length or 0
    if size > limit:
        raise TooLarge(f"the body has {size} bytes; the limit is {limit >> 20} MiB (--max-body-mb)")
    # Requiring JSON's type also keeps web pages of other origins out, which may only send plain types unasked.
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
    """The decompressed body, at most ``limit`` bytes: a small body may decompress to a very large one."""
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
