"""Remote images: what may be fetched, and that nothing else is ever connected to."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from server import fetch
from server.addresses import is_public
from server.api_errors import ApiError
from server.fetch import Fetcher

PUBLIC = "93.184.216.34"


def rows(*addresses: str) -> list[tuple[Any, ...]]:
    """What getaddrinfo gives."""
    return [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 80, 0, 0))
        if ":" in address
        else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
        for address in addresses
    ]


@pytest.fixture
def no_connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Fails the test when anything connects."""
    made: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        made.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    yield made
    assert made == []


def refused(fetcher: Fetcher, url: str, status: int = 400) -> str:
    with pytest.raises(ApiError) as caught:
        fetcher.fetch(url)
    assert caught.value.status_code == status
    return caught.value.message


PRIVATE = [
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1",
    "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "2001:db8::1", "100::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "::127.0.0.1", "::10.0.0.1",
    "2002:7f00:1::", "2002:a00:1::1", "2002:c0a8:101::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
    "2001:0:0:0:0:0:f5ff:fffe",
    # Of IANA's registries, some of which Python 3.11 takes for public.
    "192.0.0.192", "192.0.0.170", "192.88.99.1", "3fff::1", "3fff:fff::1", "5f00::1", "100:0:0:1::1", "2001:2::1",
    "2001:10::1", "2001:1::1", "4000::1", "::ffff:192.0.0.192", "64:ff9b::c000:c0", "2002:c000:c0::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_for_an_address_that_is_not_public_is_refused(address: str, no_connections: list[Any]) -> None:
    assert not is_public(address)
    fetcher = Fetcher(resolver=lambda host, port: rows(address))
    assert "not on the public internet" in refused(fetcher, "http://innocent.example/a.png")


@pytest.mark.parametrize(
    "address", [PUBLIC, "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2a00:1450::1"]
)
def test_public_addresses_pass(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", ["", "localhost", "1.2.3", "0x7f.1", "x", "1.1.1.1.1", "127.1"])
def test_what_is_no_plain_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png", "http://127.0.0.1:8000/", "https://127.0.0.1/", "http://2130706433/", "http://0x7f000001/",
        "http://0177.0.0.1/", "http://0x7f.1/", "http://127.1/", "http://017700000001/", "http://[::1]/", "http://[::]/",
        "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://169.254.169.254/latest/meta-data/",
        "http://3232235777/", "http://0/", "http://10.1.2.3/", "http://localhost/", "HTTP://LOCALHOST/",
        "http://127.0.0.1./a",
    ],
)  # fmt: skip
def test_private_addresses_in_every_spelling_are_refused(url: str, no_connections: list[Any]) -> None:
    refused(Fetcher(), url)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/a", "gopher://example.com/", "http://", "http:///a", "http://user@example.com/",
        "http://user:pw@example.com/", "http://example.com:99999/", "http://example.com:x/", "http://[::1/",
        "http://exa mple.com/", "http://example.com\\@127.0.0.1/", "http://a%2f.example/", "http://" + "a" * 300 + "/",
        "dict://example.com:11211/", "https://\x00/", "http://[fe80::1%25eth0]/",
    ],
)  # fmt: skip
def test_odd_urls_are_refused(url: str, no_connections: list[Any]) -> None:
    refused(Fetcher(), url)


def test_a_dns_answer_that_mixes_public_and_private_is_refused(no_connections: list[Any]) -> None:
    for addresses in ((PUBLIC, "127.0.0.1"), ("10.0.0.1", PUBLIC), (PUBLIC, "::1")):
        mixed = rows(*addresses)
        refused(Fetcher(resolver=lambda host, port, mixed=mixed: mixed), "http://innocent.example/")


def test_a_name_that_changes_its_answer_is_connected_to_as_it_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [rows(PUBLIC), rows("127.0.0.1")]
    connected: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket.socket, "connect", connect)
    refused(Fetcher(resolver=lambda host, port: answers.pop(0)), "http://rebinding.example/")
    assert connected == [(PUBLIC, 80)]
    assert len(answers) == 1  # asked once


def test_a_name_without_an_address_is_refused(no_connections: list[Any]) -> None:
    def fail(host: str, port: int) -> list[tuple[Any, ...]]:
        raise socket.gaierror("no such host")

    for resolver in (fail, lambda host, port: []):
        assert "no address" in refused(Fetcher(resolver=resolver), "http://nowhere.example/")


def test_a_resolver_that_hangs_is_given_up(no_connections: list[Any]) -> None:
    hang = threading.Event()

    def wait(host: str, port: int) -> list[tuple[Any, ...]]:
        hang.wait(30)
        return rows(PUBLIC)

    refused(Fetcher(timeout=0.05, resolver=wait), "http://slow.example/")
    hang.set()


Handle = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture
def web() -> Iterator[Callable[[Handle], str]]:
    """Start web servers on the loopback address; their handler gets every GET."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(handle: Handle) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def answer(body: bytes = b"image", status: int = 200, **headers: str) -> Handle:
    def handle(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(body)), **named}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return handle


def test_any_fetches_from_everywhere(web: Callable[[Handle], str]) -> None:
    seen: dict[str, Any] = {}

    def handle(request: http.server.BaseHTTPRequestHandler) -> None:
        seen.update(path=request.path, host=request.headers["Host"])
        answer()(request)

    url = web(handle)
    assert Fetcher("any").fetch(f"{url}/a b/ü.png?q=1 2#fragment") == b"image"
    assert seen == {"path": "/a%20b/%C3%BC.png?q=1%202", "host": url.removeprefix("http://")}


def test_off_fetches_nothing(no_connections: list[Any]) -> None:
    assert "data: URL" in refused(Fetcher("off"), "https://example.com/a.png")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1/", "http://[::1]:80/", "//10.0.0.1/x", "http://169.254.169.254/", "http://2130706433/",
     "file:///etc/passwd", "http://private.example/", "ftp://innocent.example/"],
)  # fmt: skip
def test_a_redirect_to_what_is_not_public_is_refused_without_a_connection(
    web: Callable[[Handle], str], monkeypatch: pytest.MonkeyPatch, status: int, target: str
) -> None:
    port = int(web(answer(b"", status, Location=target)).rpartition(":")[2])
    connected: list[str] = []

    def connect(self: fetch.Connection) -> socket.socket:
        # The public address of this test is played by the local server.
        connected.append(self.rows[0][4][0])
        return socket.create_connection(("127.0.0.1", port))

    monkeypatch.setattr(fetch.Connection, "connect", connect)

    def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
        table = {"innocent.example": PUBLIC, "private.example": "192.168.0.1"}
        return rows(table[host]) if host in table else fetch.resolve_host(host, port)

    refused(Fetcher(resolver=resolve), "http://innocent.example/a.png")
    assert connected == [PUBLIC]


def test_redirects_are_followed_up_to_the_limit(web: Callable[[Handle], str]) -> None:
    def handle(request: http.server.BaseHTTPRequestHandler) -> None:
        left = int(request.path.strip("/"))
        (answer(b"", 302, Location=f"/{left - 1}") if left else answer())(request)

    url = web(handle)
    assert Fetcher("any").fetch(f"{url}/3") == b"image"
    assert "more than 3" in refused(Fetcher("any"), f"{url}/4")


def test_bodies_beyond_the_limit_are_cut_off_whether_announced_or_not(web: Callable[[Handle], str]) -> None:
    url = web(answer(b"x" * 2000))
    assert len(Fetcher("any", max_bytes=2000).fetch(url)) == 2000
    refused(Fetcher("any", max_bytes=1999), url, 413)

    def endless(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(b"x" * 1000)
        except OSError:
            pass

    refused(Fetcher("any", max_bytes=100_000), web(endless), 413)


def test_a_peer_that_trickles_is_cut_off(web: Callable[[Handle], str]) -> None:
    stop = threading.Event()

    def trickle(request: http.server.BaseHTTPRequestHandler) -> None:
        try:
            request.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            while not stop.wait(0.02):
                request.wfile.write(b"x")
        except OSError:
            pass

    refused(Fetcher("any", timeout=0.3), web(trickle))
    stop.set()


def test_a_body_that_ends_early_is_refused(web: Callable[[Handle], str]) -> None:
    refused(Fetcher("any"), web(answer(b"half", Content_Length="8")))


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 404, 500])
def test_other_statuses_are_refused(web: Callable[[Handle], str], status: int) -> None:
    assert str(status) in refused(Fetcher("any"), web(answer(b"", status)))


def test_what_is_no_http_is_refused_without_telling_what_it_said(web: Callable[[Handle], str]) -> None:
    def speak(request: http.server.BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"SSH-2.0-secret\r\n\r\n")

    assert "secret" not in refused(Fetcher("any"), web(speak))


def test_tls_is_verified(web: Callable[[Handle], str]) -> None:
    refused(Fetcher("any", timeout=5), web(answer()).replace("http://", "https://"))
