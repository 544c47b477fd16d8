"""Decides about connections and requests before a byte of a body is kept.

waitress reads whole requests before the application sees them. Its parser and channel are extended here: a client
without a key, with too large a body or too slow a connection is refused at the headers; an address has a limit of
connections; when there are too many connections, the one that has been idle longest makes room for the next.
"""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import falcon
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import ErrorTask, ThreadedTaskDispatcher

from server.api_errors import ApiError, TooLarge, Unavailable, error_body

from . import logs
from .admission import Admission, Held
from .auth import OPEN_PATHS, ApiKeys

HEADER_SECONDS = 15.0  # seconds for all headers of a request
GRACE_SECONDS = 10.0  # seconds before the rate of a body counts
LEAST_RATE = 10_000  # bytes of a body each second, on average
STALL_SECONDS = 60.0  # seconds after which the connection of a client that reads nothing of its answer is closed
LINGER_SECONDS = 3.0  # seconds for a client to stop sending after a refusal: closing at once could lose the answer
MORE_FOR_HEALTH = 8  # connections beyond the limit while all others are busy
SMALL_BODY = 65_536  # bytes of a body that need no place in admission
_STEP = 1 << 20  # bytes of a body that are taken from admission at once


class Door:
    """Decides which connections and requests come in. Its methods run on the thread of the socket loop."""

    def __init__(
        self, keys: ApiKeys, admission: Admission, *, max_body: int, max_connections: int, max_per_address: int,
        origins: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """max_body : bytes. max_per_address : connections; 0: no limit. origins : of web pages that may ask."""
        self._keys, self._admission = keys, admission
        self._max_body, self._max_connections, self._max_per_address = max_body, max_connections, max_per_address
        self._origins = origins
        self._channels: set[Channel] = set()
        self._of_address: Counter[str] = Counter()

    def channel(self, server: Any, sock: socket.socket, addr: Any, adj: Any, map: Any = None) -> Channel | None:
        """waitress' ``channel_class``: take a new connection in, or close it if its address has too many."""
        address = _address(addr)
        mine = self._of_address[address]
        fits = not self._max_per_address or self._has_room(mine, self._max_per_address, address)
        if not (fits and self._has_room(len(self._channels), self._max_connections)):
            sock.close()
            return None
        return Channel(self, server, sock, addr, adj, map=map)

    def came(self, channel: Channel) -> None:
        """Count a connection that opened."""
        self._channels.add(channel)
        self._of_address[channel.address] += 1

    def left(self, channel: Channel) -> None:
        """Count a connection that closed."""
        if channel in self._channels:
            self._channels.remove(channel)
            self._of_address[channel.address] -= 1
            self._of_address += Counter()  # forget addresses without a connection

    def look(self) -> None:
        """Refuse or close connections that are too slow. Called about once a second."""
        for channel in list(self._channels):
            channel.look()

    def problem(self, request: RequestParser) -> ApiError | None:
        """Why a request is refused, judged by its headers alone; None: it is not."""
        if not request.has_body:
            return None  # the application refuses the rest at no cost
        if not self._keys.knows(request.headers.get("AUTHORIZATION", ""), request.headers.get("X_API_KEY", "")):
            small = not request.chunked and request.content_length <= SMALL_BODY
            if (request.path.rstrip("/") or "/") not in OPEN_PATHS and request.command != "OPTIONS":
                return ApiKeys.refusal()
            return None if small else TooLarge(f"{request.path} takes no body of more than {SMALL_BODY} bytes")
        size = request.content_length
        if size > self._max_body:
            return TooLarge(f"the body has {size} bytes; the limit is {self._max_body >> 20} MiB (--max-body-mb)")
        if self._admission.held("bodies") + size > self._admission.capacity.bodies:
            return Unavailable("the bodies of other requests fill the house; try again later", code="queue_full")
        return None

    def take(self) -> Held:
        """Take room for a portion of a body. Raises as ``Admission.take``."""
        return self._admission.take("bodies", _STEP)

    def cross_origin(self, request: RequestParser) -> dict[str, str]:
        """The header with which a browser lets a web page see a refusal."""
        origin = request.headers.get("ORIGIN", "")
        if not origin or not ("*" in self._origins or origin in self._origins):
            return {}
        return {"Access-Control-Allow-Origin": "*" if "*" in self._origins else origin}

    def _has_room(self, count: int, limit: int, address: str | None = None) -> bool:
        """Whether one more connection may come in, if need be in place of the one that has been idle longest.

        Where all are busy, a few more may come in, to ask for /health.
        """
        if count < limit:
            return True
        idle = (one for one in self._channels if one.is_idle and address in (None, one.address))
        slowest = min(idle, key=lambda one: one.since, default=None)
        if slowest is None:
            return count < limit + MORE_FOR_HEALTH
        slowest.handle_close()
        return True


class Refusal:
    """One of our errors as an error of waitress' parser."""

    def __init__(self, error: ApiError) -> None:
        self.error = error
        self.code, self.body = error.status_code, error.message
        self.reason = falcon.code_to_http_status(error.status_code).partition(" ")[2]


class RequestParser(HTTPRequestParser):  # type: ignore[misc]  # waitress has no types, and so have the classes below
    """Parses one request."""

    error: Any = None  # waitress' error, a ``Refusal`` included; None: no error
    body_rcv: Any = None  # keeps the body

    def __init__(self, door: Door, channel: Channel, adj: Any) -> None:
        super().__init__(adj)
        self._door, self._channel = door, channel
        self.since = time.monotonic()
        self._held: list[Held] = []

    @property
    def has_body(self) -> bool:
        """Whether the headers announce a body."""
        return bool(self.chunked) or self.content_length > 0

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # urllib's, for an invalid address
            raise ParsingError("the request line is malformed") from error
        if (problem := self._door.problem(self)) is not None:
            self.refuse(problem)

    def received(self, data: bytes) -> int:
        consumed: int = super().received(data)
        try:
            while self.error is None and self.body_bytes_received > len(self._held) * _STEP:
                self._held.append(self._door.take())
        except ApiError as error:
            self.refuse(error)
        if self.error is not None:
            self._channel.refused = True
            return len(data)  # the bytes that follow are no request
        return consumed

    def refuse(self, error: ApiError) -> None:
        """Answer with an error, whatever else the client sends."""
        self.error = Refusal(error)
        self.completed = True
        self.expect_continue = False
        self.content_length = 0  # else waitress would answer in its own form
        self.release()

    def release(self) -> None:
        """Drop the body and its share of admission. Idempotent."""
        if self.body_rcv is not None:
            self.body_rcv.getbuf().close()
        held, self._held = self._held, []
        for portion in held:
            portion.release()

    def close(self) -> None:
        self.release()

    def look(self) -> None:
        """Refuse a request that arrives too slowly."""
        passed = time.monotonic() - self.since
        if not self.headers_finished:
            if passed > HEADER_SECONDS:
                self.refuse(_too_slow(f"the headers were not complete after {HEADER_SECONDS:.0f} s"))
        elif self.body_bytes_received < LEAST_RATE * (passed - GRACE_SECONDS):
            self.refuse(
                _too_slow(f"{self.body_bytes_received} bytes of the body came in {passed:.0f} s; send it faster")
            )


class _ErrorTask(ErrorTask):  # type: ignore[misc]
    """Answers errors that were found before the application in OpenAI's form."""

    def execute(self) -> None:
        problem = self.request.error
        channel: Channel = self.channel
        logs.refused(problem.code, str(problem.body), channel.address)
        if isinstance(problem, Refusal):
            error = problem.error
            body = error_body(error.status_code, error.message, error.param, error.error_code)
            self.response_headers += list(dict(error.headers or {}).items())
        else:
            body = error_body(problem.code, str(problem.body), code=problem.reason.lower().replace(" ", "_"))
        self.response_headers += list(channel.door.cross_origin(self.request).items())
        content = json.dumps(body).encode()
        self.status = f"{problem.code} {problem.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(content)
        self.write(content)


class Channel(HTTPChannel):  # type: ignore[misc]
    """One connection."""

    request: Any = None  # the Parser of the request that is being received
    error_task_class = _ErrorTask

    def __init__(self, door: Door, server: Any, sock: socket.socket, addr: Any, adj: Any, map: Any = None) -> None:
        self.door, self.address = door, _address(addr)
        self.refused = False  # no more requests are taken from this client
        self.since = time.monotonic()  # time of its last whole request
        self._lingers_until: float | None = None  # the answer is out, and further bytes are dropped
        super().__init__(server, sock, addr, adj, map=map)
        self.parser_class = functools.partial(RequestParser, door, self)
        door.came(self)

    @property
    def is_idle(self) -> bool:
        """Whether the server does nothing for this client, which may be sending a request or none."""
        return not self.requests and not self.total_outbufs_len

    def readable(self) -> bool:
        if self._lingers_until is not None or (self.refused and not self.will_close):
            return True
        return bool(super().readable())

    def writable(self) -> bool:
        return self._lingers_until is None and bool(super().writable())

    def received(self, data: bytes) -> bool:
        if self.refused:
            return True
        whole = len(self.requests)
        done = bool(super().received(data))
        if len(self.requests) > whole:
            self.since = time.monotonic()
        return done

    def handle_read(self) -> None:
        super().handle_read()
        if self._lingers_until is not None and not self.connected:
            self.handle_close()

    def handle_write(self) -> None:
        if self.refused and not self.requests and self.close_when_flushed and not self.total_outbufs_len:
            self._linger()
        else:
            super().handle_write()

    def _linger(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:  # the client has gone already
            self.handle_close()
        else:
            self._lingers_until = time.monotonic() + LINGER_SECONDS

    def handle_close(self) -> None:
        super().handle_close()
        with self.requests_lock:
            if self.request is not None:  # half a request, which only we can close
                self.request.close()
                self.request = None
        self.door.left(self)

    def look(self) -> None:
        """Refuse or close a connection that is too slow."""
        if self._lingers_until is not None:
            if time.monotonic() > self._lingers_until:
                self.handle_close()
        elif self.total_outbufs_len and time.time() - self.last_activity > STALL_SECONDS:
            self.will_close = True
        elif not self.requests and self.request is not None:
            with self.requests_lock:
                if self.request is None or self.requests:
                    return
                self.request.look()
                if self.request.error is None:
                    return
                self.refused = True
                self.requests.append(self.request)
                self.request = None
            self.server.add_task(self)


class Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]
    """Threads for requests, and one for the health routes alone, which is always free."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._health = ThreadedTaskDispatcher()
        self._health.set_thread_count(1)
        self.set_thread_count(threads)

    def add_task(self, task: Any) -> None:
        request = task.requests[0]
        if request.error is None and (request.path.rstrip("/") or "/") in OPEN_PATHS:
            self._health.add_task(task)
        else:
            super().add_task(task)

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> bool:
        self._health.shutdown(cancel_pending, timeout)
        return bool(super().shutdown(cancel_pending, timeout))


def raise_file_limit(wanted: int) -> int:
    """Raise the limit of open files as far as the system allows. Returns the new limit."""
    try:
        import resource
    except ImportError:  # Windows: sockets are no files
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # macOS allows less than its hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
        return soft
    return wanted


def _address(addr: Any) -> str:
    return str(addr[0]) if isinstance(addr, tuple) else str(addr)


def _too_slow(message: str) -> ApiError:
    return ApiError(408, message, code="request_timeout")
