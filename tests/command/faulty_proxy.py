"""A proxy before a server, that passes requests on or does what a test says in their place."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

Fault = Callable[["Handler", int], bool]  # (request, its number among the chat requests) -> whether it was answered


class Handler(BaseHTTPRequestHandler):
    """Passes requests on to the server behind, but for those that a fault takes."""

    protocol_version = "HTTP/1.1"
    server: FaultyProxy  # type: ignore[assignment]

    def do_GET(self) -> None:
        self._pass_on("GET", None)

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            number = len(self.server.chats)
            self.server.chats.append((time.monotonic(), json.loads(self.body), dict(self.headers)))
        if not self.server.fault(self, number):
            self._pass_on("POST", self.body)

    def _pass_on(self, method: str, body: bytes | None) -> None:
        headers = {name: self.headers[name] for name in ("Authorization", "Content-Type") if name in self.headers}
        url = self.server.behind + self.path
        answer = httpx.request(method, url, content=body, headers=headers, timeout=60, trust_env=False)
        self.answer(answer.status_code, answer.content, {"Content-Type": answer.headers["content-type"]})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> bool:
        with contextlib.suppress(OSError):  # the client may be gone
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        return True

    def hang_up(self, *, after: bytes = b"") -> bool:
        with contextlib.suppress(OSError):
            self.wfile.write(after)
            self.wfile.flush()
        self.close_connection = True
        self.connection.close()
        return True

    def log_message(self, *_: Any) -> None: ...


class FaultyProxy(ThreadingHTTPServer):
    """A load balancer in a bad mood."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind = behind
        self.fault: Fault = lambda request, number: False
        self.chats: list[tuple[float, Any, dict[str, str]]] = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"
