"""One request on its way to a replica and back: the server's WSGI application, called from an event loop.

The front sends a ``Call``; the replica answers with a ``Head`` and the pieces of the body.
"""

from __future__ import annotations

import asyncio
import io
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

AHEAD = 8  # pieces of an answer that wait for a slow client, before the thread that makes the pieces waits too
LOOK_SECONDS = 0.5  # between two looks of such a waiting thread whether the client has hung up


@dataclass(frozen=True)
class Call:
    """A request with its whole body."""

    method: str
    path: bytes  # as the client sent the path, still percent-encoded
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]  # names in lower case
    body: bytes
    client: str  # address


@dataclass(frozen=True)
class Head:
    """Status and headers of an answer, which come before its body."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]


Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def environ_of(call: Call, is_gone: Callable[[], bool]) -> dict[str, Any]:
    """The WSGI environment of a request. is_gone : whether the client has hung up, under the key that waitress uses."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": call.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(call.path).decode("latin-1"),
        "QUERY_STRING": call.query.decode("latin-1"),
        "SERVER_NAME": "ray",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": call.client,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(call.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "CONTENT_LENGTH": str(len(call.body)),
        "waitress.client_disconnected": is_gone,
    }
    for name, value in call.headers:
        key = name.decode("latin-1").upper().replace("-", "_")
        if key in ("CONTENT_LENGTH", "TRANSFER_ENCODING"):
            continue  # the whole body is here, and CONTENT_LENGTH is its length
        key = key if key == "CONTENT_TYPE" else f"HTTP_{key}"
        text = value.decode("latin-1")
        environ[key] = f"{environ[key]},{text}" if key in environ else text
    return environ


async def answers(wsgi: Wsgi, call: Call, threads: Executor) -> AsyncIterator[Head | bytes]:
    """The head of the answer, then its body piece by piece. To close the iterator early cancels the request."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[Head | bytes | Exception | None] = asyncio.Queue(AHEAD)
    gone = threading.Event()

    def send(piece: Head | bytes | Exception | None) -> None:
        """Called by the thread: put a piece into the queue of the event loop, unless the client has hung up."""
        waiting: Future[None] = asyncio.run_coroutine_threadsafe(pieces.put(piece), loop)
        while not gone.is_set():
            try:
                waiting.result(LOOK_SECONDS)
                return
            except TimeoutError:
                continue
        waiting.cancel()

    running = threads.submit(_run, wsgi, call, send, gone)
    try:
        while (piece := await pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece
    finally:
        gone.set()
        running.cancel()  # only a request that no thread has begun


def _run(
    wsgi: Wsgi, call: Call, send: Callable[[Head | bytes | Exception | None], None], gone: threading.Event
) -> None:
    """Run the application on a thread, as waitress does, and send what it answers."""
    head: list[Head] = []

    def start_response(status: str, headers: list[tuple[str, str]], error: Any = None) -> None:
        pairs = tuple((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers)
        head[:] = [Head(int(status.partition(" ")[0]), pairs)]

    try:
        body = wsgi(environ_of(call, gone.is_set), start_response)
        try:
            sent = False
            for piece in body:
                if gone.is_set():
                    return
                if not sent:
                    send(head[0])
                    sent = True
                if piece:
                    send(piece)
            if not sent:
                send(head[0])
        finally:
            if hasattr(body, "close"):
                body.close()
        send(None)
    except Exception as error:  # raised by ``answers``, where the caller waits
        send(error)
