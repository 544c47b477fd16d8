"""Server-sent events: their bytes, and a WSGI body that is closed in every case."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second header stops nginx from buffering


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """One event with a JSON document."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class EventStream:
    """Iterates over the chunks; ``close`` runs ``on_close`` once even if iteration never began.

    A plain generator's ``finally`` does not run when it is closed before its first step, and a client may hang up
    between the headers and the first event.
    """

    def __init__(self, chunks: Iterator[bytes], on_close: Callable[[], None]) -> None:
        self._chunks = chunks
        self._on_close = on_close
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        """Called by the WSGI server when the response is over, sent or broken."""
        if not self._closed:
            self._closed = True
            self._on_close()
