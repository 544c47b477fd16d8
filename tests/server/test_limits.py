"""The adversary's clock: hostile requests of every kind at once, and an honest one among them.

Each kind comes many times at once, is left alone for a while, and is hung up on. Meanwhile an honest request is
answered and the health route is; afterwards every place, pixel and byte is back, and so is the memory.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from server.http.app import WORKERS
from tests.pdfs import field_bomb_pdf, nested_pdf, text_pdf
from tests.server.conftest import MakeService, ServerProcess, chat, data_url
from tests.waiting import until

KEY = "key"
HOSTILE = 40  # requests of one kind at once; the house has 24 places
GIVEN_BACK_WITHIN = 5.0  # seconds after the last of them has hung up
MOST_MEMORY = 600_000_000 + WORKERS * 800_000_000  # bytes, of the server and its workers together


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    home = tmp_path_factory.mktemp("server")
    flags = ["--slots", "4", "--max-queue", "20", "--page-timeout", "2", "--max-new-tokens-limit", "4096"]
    process = ServerProcess(flags, home, "tests.server.fake_server", OCR_ONNX_API_KEY=KEY, HASTY="1")
    until(lambda: httpx.get(f"{process.url}/ready").status_code == 200)
    yield process
    process.kill()


def document(data: bytes) -> dict[str, Any]:
    url = f"data:application/pdf;base64,{base64.b64encode(data).decode()}"
    part = {"type": "file", "file": {"file_data": url, "filename": "a.pdf"}}
    return {"model": "deepseek-ocr", "messages": [{"role": "user", "content": [part]}]}


def huge_picture() -> bytes:
    """A PNG of 49 million pixels in 50 kB."""
    buffer = io.BytesIO()
    Image.new("1", (7000, 7000)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def post(body: dict[str, Any], key: str = KEY) -> bytes:
    content = json.dumps(body).encode()
    return head(len(content), key) + content


def head(length: int, key: str = KEY) -> bytes:
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def endless(**more: Any) -> dict[str, Any]:
    return chat("endless", **more)


BODIES: dict[str, Callable[[], bytes]] = {
    "nested pdf": lambda: post(document(nested_pdf(pages=3))),
    "fields without end": lambda: post(document(field_bomb_pdf())),
    "huge pages": lambda: post(document(text_pdf(["wall"] * 20, (14_400, 14_400)))),
    "huge picture as a file": lambda: post(document(huge_picture())),
    "huge picture": lambda: post(chat(url=data_url(Image.new("1", (7000, 7000))))),
    "many pictures": lambda: post(
        {"model": "deepseek-ocr", "messages": [{"role": "user", "content": chat()["messages"][0]["content"][:1] * 10}]}
    ),
    "long prompt": lambda: post(chat("word " * 150_000)),
    "long answers": lambda: post(endless(max_tokens=1_000_000)),
    "streams that nobody reads": lambda: post(endless(stream=True)),
    "half a body": lambda: head(40_000_000) + b"x" * 200_000,
    "half a head": lambda: b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n",
    "wrong key": lambda: post(document(b"x" * 2_000_000), key="wrong"),
    "no http": lambda: b"\x16\x03\x01" + b"x" * 100 + b"\r\n\r\n",
}


def family_memory(server: ServerProcess) -> int:
    """Resident bytes of the server and its workers together; pages that they share count in each."""
    total = 0
    process = psutil.Process(server.process.pid)
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total


def metric(server: ServerProcess, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=60).text
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])


def send(server: ServerProcess, content: bytes, sockets: list[socket.socket]) -> None:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.settimeout(60)
    sockets.append(connection)
    with contextlib.suppress(OSError):  # it is refused while it still sends
        connection.sendall(content)


@pytest.mark.parametrize("kind", BODIES)
def test_many_hostile_requests_at_once_leave_nothing_behind(server: ServerProcess, kind: str) -> None:
    content = BODIES[kind]()
    sockets: list[socket.socket] = []
    threads = [threading.Thread(target=send, args=(server, content, sockets)) for _ in range(HOSTILE)]
    for thread in threads:
        thread.start()
    most = 0
    for _ in range(10):
        time.sleep(0.2)
        most = max(most, family_memory(server))
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
    for thread in threads:
        thread.join(60)
    for connection in sockets:
        connection.close()
    left = time.monotonic()
    until(lambda: metric(server, "ocr_requests_present") == 0)
    taken = time.monotonic() - left
    assert most < MOST_MEMORY
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json=chat(), headers={"Authorization": f"Bearer {KEY}"}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    for held in ("places", "documents", "bodies", "pixels", "tokens"):
        until(lambda held=held: metric(server, f'ocr_held{{kind="{held}"}}') == 0)  # type: ignore[misc]
    print(f"{kind}: {most / 1e6:.0f} MB, all given back after {taken:.1f} s of {GIVEN_BACK_WITHIN:.0f}")
    assert "Traceback" not in "\n".join(server.lines)


@pytest.mark.parametrize("kind", ["nested pdf", "fields without end", "huge picture as a file"])
def test_single_images_are_answered_while_hostile_documents_are_drawn(server: ServerProcess, kind: str) -> None:
    content = BODIES[kind]()
    sockets: list[socket.socket] = []
    for _ in range(HOSTILE):
        send(server, content, sockets)
    for _ in range(3):
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", json=chat(), headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        )
        assert answer.status_code == 200, answer.text
    for connection in sockets:
        connection.close()
    until(lambda: metric(server, "ocr_requests_present") == 0)


def test_documents_have_half_of_the_places(make_service: MakeService) -> None:
    service = make_service(slots=1, max_queue=3)
    house = service.application.admission
    with house.take("documents", 2):
        refused = service.post(document(text_pdf(["one"])))
        assert (refused.status_code, refused.json["error"]["code"]) == (503, "queue_full")
        assert "2 documents are being read" in refused.json["error"]["message"]
        assert service.post(chat()).status_code == 200
    assert service.post(document(text_pdf(["one"]))).status_code == 200


def test_turns_are_shared_out_by_key_and_without_keys_by_address(make_service: MakeService) -> None:
    open_house, locked = make_service(), make_service(api_keys=("one", "two"))

    def clients(service: Any, *keys: str) -> list[str]:
        for key in keys:
            assert service.post(chat(), headers={"Authorization": f"Bearer {key}"}).status_code == 200
            assert (
                service.post(document(text_pdf(["a"])), headers={"Authorization": f"Bearer {key}"}).status_code == 200
            )
        return [request.client for request in service.source.models["deepseek-ocr"].requests]

    one, again, two, last = clients(locked, "one", "two")
    assert one == again != two == last
    assert "one" not in one
    assert len(set(clients(open_house, "one", "two"))) == 1  # nobody invents shares for himself
