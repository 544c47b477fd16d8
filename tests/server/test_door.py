"""Refusals at the headers: before a body is kept, whatever the client goes on sending, with an answer that arrives."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.api_errors import ClientGone, Unavailable
from server.http.admission import Admission, Capacity
from tests.server.conftest import ServerProcess, chat
from tests.waiting import until

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """With a key, small limits and little patience."""
    limits = ["--max-body-mb", "4", "--max-connections-per-address", "30", "--cors-origin", "http://page.example"]
    home = tmp_path_factory.mktemp("server")
    process = ServerProcess(limits, home, "tests.server.fake_server", OCR_ONNX_API_KEY="key", HASTY="1")
    yield process
    process.kill()


def connect(server: ServerProcess) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.settimeout(60)
    return connection


def head(length: int | str | None, *lines: str, path: str = "/v1/chat/completions", method: str = "POST") -> bytes:
    size = [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *size, *lines, "", ""]).encode()


def answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON body of what comes until the server hangs up."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    top, _, body = received.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, json.loads(body)


def error(connection: socket.socket) -> tuple[int, str]:
    status, _, body = answer(connection)
    return status, body["error"]["code"]


KEY = "Authorization: Bearer key"
JSON = "Content-Type: application/json"


def kept(server: ServerProcess) -> int:
    """Bytes of files that the server has open and nobody else can see: bodies."""
    total = 0
    for path in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            total += path.stat().st_size if "(deleted)" in str(path.readlink()) else 0
    return total


@pytest.mark.parametrize("lines", [[], ["Authorization: Bearer wrong"], ["Authorization: Basic key"]])
def test_a_body_without_a_key_is_refused_at_its_headers_and_never_kept(server: ServerProcess, lines: list[str]) -> None:
    connection = connect(server)
    connection.sendall(head(3 * MIB, JSON, *lines))
    connection.sendall(b"x" * (2 * MIB))  # which nobody wants
    time.sleep(0.2)
    if Path("/proc").is_dir():
        assert kept(server) == 0
        bearer = connect(server)
        bearer.sendall(head(3 * MIB, JSON, KEY) + b"x" * (2 * MIB))
        until(lambda: kept(server) > MIB)
        bearer.close()
        until(lambda: kept(server) == 0)
    assert error(connection) == (401, "invalid_api_key")


def test_who_asks_first_is_told_before_the_body_is_sent(server: ServerProcess) -> None:
    connection = connect(server)
    connection.sendall(head(3 * MIB, JSON, "Expect: 100-continue"))
    status, headers, _ = answer(connection)
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"


def test_a_web_page_may_see_why_it_was_refused(server: ServerProcess) -> None:
    connection = connect(server)
    connection.sendall(head(100_000, JSON, "Origin: http://page.example"))
    assert answer(connection)[1]["access-control-allow-origin"] == "http://page.example"
    connection = connect(server)
    connection.sendall(head(100_000, JSON, "Origin: http://other.example"))
    assert "access-control-allow-origin" not in answer(connection)[1]


@pytest.mark.parametrize(
    ("request_head", "status", "code"),
    [
        (head(4 * MIB + 1, JSON, KEY), 413, "too_large"),
        (head("1" + "0" * 30, JSON, KEY), 413, "too_large"),
        (head(100_000, path="/health"), 413, "too_large"),
        (head(100_000, method="OPTIONS"), 413, "too_large"),
        (head("x", KEY), 400, "bad_request"),
        (head(None, JSON, "Transfer-Encoding: chunked"), 401, "invalid_api_key"),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"),
        (b"GARBAGE\r\n\r\n", 400, "bad_request"),
        (b"\x00\xff /\xfe HTTP/9\r\n\r\n", 400, "bad_request"),
    ],
)
def test_what_is_wrong_with_the_headers_is_said_without_a_traceback(
    server: ServerProcess, request_head: bytes, status: int, code: str
) -> None:
    before = len(server.lines)
    connection = connect(server)
    connection.sendall(request_head)
    assert error(connection) == (status, code)
    assert "Traceback" not in "\n".join(server.lines[before:])


def test_a_chunked_body_beyond_the_limit_is_refused_on_its_way(server: ServerProcess) -> None:
    connection = connect(server)
    connection.sendall(head(None, JSON, KEY, "Transfer-Encoding: chunked"))
    try:
        for _ in range(6):
            connection.sendall(b"100000\r\n" + b"x" * MIB + b"\r\n")
        status, _ = error(connection)
    except OSError:  # it has hung up already
        return
    assert status == 413


def test_who_sends_too_slowly_is_hung_up_on(server: ServerProcess) -> None:
    slow_headers, slow_body = connect(server), connect(server)
    slow_headers.sendall(b"POST /v1/chat/comp")
    slow_body.sendall(head(3 * MIB, JSON, KEY) + b"x" * 1000)
    assert error(slow_headers) == (408, "request_timeout")
    assert error(slow_body) == (408, "request_timeout")


def test_health_answers_while_slow_connections_fill_the_house(server: ServerProcess) -> None:
    slow = []
    for _ in range(100):
        connection = connect(server)
        connection.sendall(b"POST /v1/chat/comp")
        slow.append(connection)
    connection = connect(server)
    connection.sendall(head(None, "Connection: close", path="/health", method="GET"))
    assert answer(connection)[0] == 200
    assert len(psutil.Process(server.process.pid).net_connections()) < 60
    connection = connect(server)
    body = json.dumps(chat()).encode()
    connection.sendall(head(len(body), JSON, KEY, "Connection: close") + body)
    assert answer(connection)[0] == 200
    for one in slow:
        one.close()


def test_requests_on_one_connection_go_on_working(server: ServerProcess) -> None:
    connection = connect(server)
    body = json.dumps(chat()).encode()
    for number in range(3):
        if number == 1:
            time.sleep(4)  # longer than headers may take, but between two requests
        connection.sendall(head(len(body), JSON, KEY) + body)
        received = b""
        while b'"tokens_per_second"' not in received:
            received += connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 200")
    connection.close()


# What is held in the house.


def test_what_is_held_is_given_back_once() -> None:
    house = Admission(Capacity(places=2))
    first, second = house.take("places"), house.take("places")
    with pytest.raises(Unavailable) as refused:
        house.take("places")
    assert refused.value.message == "2 requests are running or waiting; try again later"
    first.release()
    first.release()
    assert house.held("places") == 1
    with house.take("places"):
        assert house.held("places") == 2
    second.release()
    assert house.held("places") == 0


def test_more_than_there_is_counts_as_all_there_is() -> None:
    house = Admission(Capacity(pixels=100))
    with house.take("pixels", 1000), pytest.raises(Unavailable):
        house.take("pixels", 1)
    assert house.held("pixels") == 0


def test_who_waits_for_others_and_hangs_up_waits_no_longer() -> None:
    house = Admission(Capacity(pixels=100))
    with house.take("pixels", 100), pytest.raises(ClientGone):
        house.take("pixels", 1, wait=60, is_gone=lambda: True)
