"""Fetches images from addresses that clients name, without giving them access to the private network.

The host is resolved once, all its addresses must be public, and the connection goes to a checked address, so that a DNS
answer that changes in between has no effect. Redirects are checked in the same way.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from .addresses import is_public
from .api_errors import BadRequest, TooLarge

log = logging.getLogger(__name__)

Resolver = Callable[[str, int], list[tuple[Any, ...]]]  # socket.getaddrinfo's rows

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HOST = re.compile(r"[^\x00-\x20\x7f/\\@?#%\[\]]+")


def resolve_host(host: str, port: int) -> list[tuple[Any, ...]]:
    """Ask the system's resolver, which also reads decimal, octal and hexadecimal IPv4 forms, as connect() would."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


@dataclass(frozen=True)
class Fetcher:
    """Fetches under one policy; holds no state between fetches."""

    policy: Literal["off", "public", "any"] = "public"
    max_bytes: int = 20 << 20
    timeout: float = 20.0  # seconds for all fetches of one request, redirects included
    max_redirects: int = 3
    resolver: Resolver = resolve_host

    def fetch(self, url: str, deadline: float | None = None) -> bytes:
        """The body at ``url``. ``deadline``: seconds of time.monotonic, in place of ``timeout`` seconds from now.

        Raises
        ------
        BadRequest
            when the address is not allowed or does not answer with an image in time.
        TooLarge
            when the body is larger than ``max_bytes``.
        """
        if self.policy == "off":
            raise _refused("remote images are switched off on this server; send the image as a data: URL")
        deadline = time.monotonic() + self.timeout if deadline is None else deadline
        for _ in range(self.max_redirects + 1):
            answer = self._get(url, deadline)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise _refused(f"the image's address redirects more than {self.max_redirects} times")

    def _get(self, url: str, deadline: float) -> bytes | str:
        """The body, or the address of a redirect."""
        parts, host, port = _parse(url)
        rows = self._resolve(host, port, deadline)
        # One private address among public ones is refused, too: the next connection could go there.
        if self.policy == "public" and not all(is_public(str(row[4][0])) for row in rows):
            raise _refused(f"the image's host {host!r} is not on the public internet; this server fetches no others")
        try:
            with Connection(rows, deadline, host if parts.scheme == "https" else None) as sock:
                return self._exchange(sock, url, parts, host, port, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # The class says enough (timeout, refused, TLS); the text could reveal this network to a client.
            raise _refused(f"the image at host {host!r} could not be fetched: {type(error).__name__}") from error

    def _resolve(self, host: str, port: int, deadline: float) -> list[tuple[Any, ...]]:
        # The resolver has no timeout, so it runs on a thread that may be left behind.
        result: list[list[tuple[Any, ...]]] = []

        def ask() -> None:
            with contextlib.suppress(OSError, UnicodeError):
                result.append(self.resolver(host, port))

        thread = threading.Thread(target=ask, name="resolver", daemon=True)
        thread.start()
        thread.join(max(0.0, deadline - time.monotonic()))
        if not result or not result[0]:
            raise _refused(f"the image's host {host!r} has no address")
        return result[0]

    def _exchange(
        self, sock: socket.socket, url: str, parts: SplitResult, host: str, port: int, deadline: float
    ) -> bytes | str:
        connection = http.client.HTTPConnection(host, port)
        connection.sock = sock
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if parts.query:
            target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        default_port = 443 if parts.scheme == "https" else 80
        name = f"[{host}]" if ":" in host else host.encode("idna").decode("ascii")
        headers = {
            "Host": name if port == default_port else f"{name}:{port}",
            "User-Agent": "ocr-onnx",
            "Accept": "image/*, application/pdf",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        if response.status in _REDIRECTS and (location := response.getheader("Location")):
            return urljoin(url, location)
        if response.status != 200:
            raise _refused(f"the image's host {host!r} answered with status {response.status}")
        return self._read(response, deadline)

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> bytes:
        expected = response.length  # Content-Length; None for chunks and "until the end"
        if expected is not None and expected > self.max_bytes:
            raise _too_large(self.max_bytes)
        body = bytearray()
        while expected is None or len(body) < expected:
            chunk = response.read1(65536)
            if time.monotonic() > deadline:
                raise TimeoutError  # a cut by the watchdog looks like an end
            if not chunk:
                break
            body += chunk
            if len(body) > self.max_bytes:
                raise _too_large(self.max_bytes)
        if time.monotonic() > deadline:
            raise TimeoutError
        if expected is not None and len(body) < expected:
            raise http.client.IncompleteRead(b"")
        return bytes(body)


class Connection:
    """A socket to the first checked address that answers, cut off at the deadline in any state."""

    def __init__(self, rows: list[tuple[Any, ...]], deadline: float, tls_host: str | None) -> None:
        self.rows, self._deadline, self._tls_host = rows, deadline, tls_host
        self._sock: socket.socket | None = None
        # A peer that sends a byte now and then would never run into a socket's timeout.
        self._watchdog = threading.Timer(self._left(), self._cut)
        self._watchdog.daemon = True

    def __enter__(self) -> socket.socket:
        self._watchdog.start()
        try:
            self._sock = self.connect()
            if self._tls_host is not None:
                # The handshake comes after the assignment, so that the watchdog can cut it too.
                self._sock = ssl.create_default_context().wrap_socket(
                    self._sock, server_hostname=self._tls_host, do_handshake_on_connect=False
                )
                self._sock.do_handshake()
            return self._sock
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        if self._sock is not None:
            self._sock.close()

    def connect(self) -> socket.socket:
        problem: OSError = OSError("no address")
        for family, kind, protocol, _, address in self.rows:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(self._left())
                sock.connect(address)
            except OSError as error:
                sock.close()
                problem = error
                continue
            return sock
        raise problem

    def _left(self) -> float:
        return max(0.01, self._deadline - time.monotonic())

    def _cut(self) -> None:
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)


def _parse(url: str) -> tuple[SplitResult, str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _refused("the image's address is not a valid URL") from None
    if parts.scheme not in ("http", "https"):
        raise _refused(f"images come by http, https or data: URLs; {parts.scheme[:20]!r} is not one of them")
    if not host or not _HOST.fullmatch(host):
        raise _refused("the image's address has no valid host")
    if parts.username is not None or parts.password is not None:
        raise _refused("the image's address must not hold a user name or password")
    return parts, host, port or (443 if parts.scheme == "https" else 80)


def _refused(message: str) -> BadRequest:
    return BadRequest(message, param="image_url", code="image_fetch_refused")


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the image is larger than {limit >> 20} MiB", param="image_url", code="image_too_large")
