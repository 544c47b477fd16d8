"""Where a server is and how to reach it: its address, the login, and the proxy that the environment names."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit

from server.options import KEYS_VARIABLE

from .command_errors import UsageError


@dataclass(frozen=True)
class ServerAddress:
    """A server's base address without a login, the proxy on the way, and the headers of every request."""

    parts: SplitResult
    proxy: SplitResult | None
    headers: Mapping[str, str]

    @classmethod
    def of(cls, url: str, api_key: str) -> Self:
        """The address in a URL, with or without ``/v1``; a user and password in the URL count where there is no key.

        Raises
        ------
        UsageError
            for a URL or a proxy that is not an HTTP address, and for a key that cannot be sent.
        """
        given = _checked(url)
        parts = given._replace(netloc=given.netloc.rpartition("@")[2])
        key = _checked_key(api_key.strip())
        login = f"Bearer {key}" if key else _basic(given)
        headers = {"User-Agent": "ocr-onnx", **({"Authorization": login} if login else {})}
        return cls(parts, _proxy_for(parts), headers)

    @property
    def url(self) -> str:
        """The address as text, without a password."""
        return self.parts.geturl()

    def connection(self, path: str, timeout: float) -> tuple[http.client.HTTPConnection, str, Mapping[str, str]]:
        """A connection, perhaps through a proxy; the target to ask for, and the headers. timeout : seconds."""
        host, port = self.parts.hostname or "", self.parts.port
        target = f"{self.parts.path}{path}"
        kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
        if self.proxy is None:
            return kind(host, port, timeout=timeout), target, self.headers
        connection = kind(self.proxy.hostname or "", self.proxy.port or 80, timeout=timeout)
        login = _basic(self.proxy)
        for_proxy = {"Proxy-Authorization": login} if login else {}
        if self.parts.scheme == "https":
            connection.set_tunnel(host, port or 443, for_proxy)
            return connection, target, self.headers
        return connection, f"{self.parts.scheme}://{self.parts.netloc}{target}", {**self.headers, **for_proxy}


def shut(sock: socket.socket | None) -> None:
    """End a connection that another thread waits on, by its socket; None: it has none yet."""
    if sock is not None:
        with contextlib.suppress(OSError):  # not connected any more
            sock.shutdown(socket.SHUT_RDWR)


def _checked(url: str) -> SplitResult:
    parts = _split(url.strip().rstrip("/").removesuffix("/v1"))
    if parts is None or parts.scheme not in ("http", "https"):
        shown = url.rpartition("@")[2]  # no password on the screen
        raise UsageError(f"--server {shown!r:.200} is no address; write one such as http://gpu:8000")
    return parts


def _split(url: str) -> SplitResult | None:
    """The parts of an address; None for an address without a valid host."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 else None  # a port that is no number raises
    except ValueError:
        return None


def _checked_key(key: str) -> str:
    for place, character in enumerate(key, 1):
        if not character.isprintable() or ord(character) > 0xFF:
            raise UsageError(
                f"character {place} of the API key is {character!a}, which no HTTP header holds; copy the key anew "
                f"into {KEYS_VARIABLE} or --api-key"
            )
    return key


def _proxy_for(url: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for ``url``.

    Raises
    ------
    UsageError
        when the proxy's address is invalid.
    """
    host = url.hostname or ""
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(url.scheme)
    if not proxy:
        return None
    via = _split(proxy if "://" in proxy else f"http://{proxy}")
    if via is None:
        shown = proxy.rpartition("@")[2]
        raise UsageError(f"{url.scheme}_proxy {shown!r:.200} is no address; write one such as http://proxy:3128")
    return via


def _basic(address: SplitResult) -> str:
    """The Authorization header for user and password in an address; empty without a user."""
    if address.username is None:
        return ""
    login = f"{unquote(address.username)}:{unquote(address.password or '')}"
    return f"Basic {base64.b64encode(login.encode()).decode()}"
