"""Requests on bare sockets, and what a server process says of itself."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import httpx
import psutil

from tests.server.conftest import ServerProcess


def metric(server: ServerProcess, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


def settled_memory(process: psutil.Process) -> int:
    """Resident bytes once they stay the same for a second: freed memory goes back a moment after its last use."""
    pause = threading.Event()
    last = 0
    while (now := process.memory_info().rss) != last:
        last = now
        pause.wait(1.0)
    return now


class Raw:
    """One request on a bare socket, which can hang up at any time."""

    def __init__(self, server: ServerProcess, body: dict[str, Any], path: str = "/v1/chat/completions") -> None:
        self.sock = socket.create_connection(("127.0.0.1", server.port))
        self.sock.settimeout(60)
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self.sock.sendall(head.encode() + data)
        self.received = b""

    def read_until(self, text: bytes) -> None:
        while text not in self.received:
            chunk = self.sock.recv(65536)
            assert chunk, self.received
            self.received += chunk

    def read_all(self) -> bytes:
        while chunk := self.sock.recv(65536):
            self.received += chunk
        return self.received

    def hang_up(self) -> None:
        self.sock.close()
