"""The real server process, over real sockets, with scripted models."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import http.server
import json
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.pdfs import text_pdf
from tests.server.conftest import MODELS, ServerProcess, StartServer, chat, data_url, image_part
from tests.server.sockets import Raw, metric, settled_memory
from tests.waiting import until

TEXT = "Grüße, 世界."
INPUT = [
    {
        "role": "user",
        "content": [{"type": "input_image", "image_url": data_url()}, {"type": "input_text", "text": "Free OCR."}],
    }
]


@pytest.fixture
def client(fake_server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fake_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


# The OpenAI client, every endpoint, plain and streamed, sync and async.


def test_models_through_the_client(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == MODELS
    assert client.models.retrieve("tiny-ocr").id == "tiny-ocr"
    with pytest.raises(openai.NotFoundError, match="known models"):
        client.models.retrieve("gpt-4")


def test_chat_through_the_client(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**chat())
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 19


def test_streamed_chat_through_the_client(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(**chat(), stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == 19


def test_responses_through_the_client(client: openai.OpenAI) -> None:
    response = client.responses.create(model="deepseek-ocr", input=INPUT)  # type: ignore[arg-type]
    assert (response.output_text, response.status) == (TEXT, "completed")
    assert response.usage is not None
    assert response.usage.input_tokens == 15
    cut = client.responses.create(model="deepseek-ocr", input=INPUT, max_output_tokens=1)  # type: ignore[arg-type]
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_streamed_responses_through_the_client(client: openai.OpenAI) -> None:
    with client.responses.stream(model="deepseek-ocr", input=INPUT) as stream:  # type: ignore[arg-type]
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == TEXT == final.output_text
    assert final.status == "completed"


def test_everything_through_the_async_client(fake_server: ServerProcess) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{fake_server.url}/v1", api_key="none", max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == MODELS
            answers = await asyncio.gather(*(client.chat.completions.create(**chat()) for _ in range(8)))
            assert {answer.choices[0].message.content for answer in answers} == {TEXT}
            pieces = [
                chunk.choices[0].delta.content or ""
                async for chunk in await client.chat.completions.create(**chat(), stream=True)
            ]
            assert "".join(pieces) == TEXT
            response = await client.responses.create(model="deepseek-ocr", input=INPUT)  # type: ignore[arg-type]
            assert response.output_text == TEXT
            kinds = [
                event.type
                async for event in await client.responses.create(
                    model="deepseek-ocr",
                    input=INPUT,
                    stream=True,  # type: ignore[arg-type]
                )
            ]
            assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")

    asyncio.run(run())


def test_tasks_boxes_and_documents_through_the_client(client: openai.OpenAI) -> None:
    data = "data:application/pdf;base64," + base64.b64encode(text_pdf(["one", "two", "three"])).decode()
    answer = client.chat.completions.create(
        model="deepseek-ocr",
        messages=[
            {"role": "user", "content": [{"type": "file", "file": {"file_data": data, "filename": "paper.pdf"}}]}
        ],
        extra_body={"task": "free", "ocr": {"pages": "2-", "boxes": True}},
    )
    assert answer.choices[0].message.content == f"{TEXT}\n\n{TEXT}"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 38
    assert [page["page"] for page in answer.model_extra["ocr"]["pages"]] == [2, 3]  # type: ignore[index]
    assert answer.model_extra["ocr"]["boxes"] == []  # type: ignore[index]
    response = client.responses.create(
        model="deepseek-ocr",
        input=[{"role": "user", "content": [{"type": "input_file", "file_data": data, "filename": "paper.pdf"}]}],
        extra_body={"ocr": {"pages": "1"}},
    )
    assert response.output_text == TEXT
    listed = client.models.retrieve("deepseek-ocr")
    assert listed.model_extra["default_task"] == "markdown"  # type: ignore[index]
    with pytest.raises(openai.BadRequestError, match="its tasks are"):
        client.chat.completions.create(**chat(), extra_body={"task": "nope"})


def test_errors_through_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**chat(), temperature=-1)
    with pytest.raises(openai.InternalServerError, match="model failed"):
        client.chat.completions.create(**chat("broken"))
    with pytest.raises(openai.APIError, match="model failed"):
        list(client.chat.completions.create(**chat("broken"), stream=True))


# Streams are live, clients go away.


def test_the_first_event_arrives_while_decoding_goes_on(fake_server: ServerProcess) -> None:
    raw = Raw(fake_server, chat("endless", stream=True))
    raw.read_until(b'"content":"3 "')
    assert b'finish_reason":"' not in raw.received
    assert metric(fake_server, "ocr_active_requests") == 1
    raw.hang_up()
    until(lambda: metric(fake_server, "ocr_active_requests") == 0)


def test_silence_is_filled_with_pings(fake_server: ServerProcess) -> None:
    raw = Raw(fake_server, chat("silent", stream=True))
    raw.read_until(b": ping\n\n")
    assert "世界".encode() not in raw.received
    raw.read_until(b"[DONE]")
    assert "世界".encode() in raw.received


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_a_client_that_hangs_up_frees_its_slot(fake_server: ServerProcess, stream: bool, path: str) -> None:
    body = chat("endless", stream=stream)
    if path == "/v1/responses":
        body["input"] = body.pop("messages")
    raw = Raw(fake_server, body, path)
    until(lambda: metric(fake_server, "ocr_active_requests") == 1)
    raw.hang_up()
    until(lambda: metric(fake_server, "ocr_active_requests") == 0)
    until(lambda: metric(fake_server, "ocr_requests_present") == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_ends_all_pages_of_its_document(fake_server: ServerProcess, stream: bool) -> None:
    data = "data:application/pdf;base64," + base64.b64encode(text_pdf(["page"] * 30)).decode()
    body = chat("endless", stream=stream)
    body["messages"][0]["content"][0] = {"type": "file", "file": {"file_data": data}}
    raw = Raw(fake_server, body)
    until(lambda: metric(fake_server, "ocr_active_requests") == 4)
    raw.hang_up()
    until(lambda: metric(fake_server, "ocr_active_requests") == metric(fake_server, "ocr_queue_depth") == 0)
    until(lambda: metric(fake_server, "ocr_requests_present") == 0)
    assert httpx.post(f"{fake_server.url}/v1/chat/completions", json=chat()).status_code == 200


def test_a_client_that_hangs_up_while_it_waits_leaves_the_queue(fake_server: ServerProcess) -> None:
    running = [Raw(fake_server, chat("endless", stream=True)) for _ in range(4)]
    until(lambda: metric(fake_server, "ocr_active_requests") == 4)
    waiting = Raw(fake_server, chat("endless"))
    until(lambda: metric(fake_server, "ocr_queue_depth") == 1)
    waiting.hang_up()
    until(lambda: metric(fake_server, "ocr_requests_present") == 4)
    for raw in running:
        raw.hang_up()
    until(lambda: metric(fake_server, "ocr_requests_present") == 0)
    until(lambda: metric(fake_server, "ocr_queue_depth") == 0)


def test_health_answers_while_every_slot_and_queue_place_is_taken(start_fake: StartServer) -> None:
    server = start_fake("--slots", "2", "--max-queue", "3")
    held = [Raw(server, chat("endless")) for _ in range(5)]
    until(lambda: metric(server, "ocr_requests_present") == 5)
    refused = httpx.post(f"{server.url}/v1/chat/completions", json=chat())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    for raw in held:
        raw.hang_up()
    until(lambda: metric(server, "ocr_requests_present") == 0)
    assert httpx.post(f"{server.url}/v1/chat/completions", json=chat()).status_code == 200


@pytest.mark.alone
def test_fifty_clients_with_half_of_them_hanging_up_leave_nothing_behind(fake_server: ServerProcess) -> None:
    chance = random.Random(7)
    process = psutil.Process(fake_server.process.pid)
    first = 0
    for _ in range(3):
        answers: list[bytes] = []
        plans = [(number % 2 == 0, chance.random(), chance.random() < 0.5) for number in range(50)]

        def run(leaves: bool, moment: float, stream: bool, answers: list[bytes] = answers) -> None:
            raw = Raw(fake_server, chat("brisk", stream=stream))
            if leaves:
                threading.Event().wait(moment * 3)
                raw.hang_up()
                return
            if stream:
                raw.read_until(b"[DONE]")
            else:
                raw.read_until(b'"tokens_per_second"')
            answers.append(raw.received)
            raw.hang_up()

        threads = [threading.Thread(target=run, args=plan) for plan in plans]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert len(answers) == 25
        assert all(b"39 " in answer for answer in answers)
        until(lambda: metric(fake_server, "ocr_requests_present") == 0)
        assert metric(fake_server, "ocr_active_requests") == metric(fake_server, "ocr_queue_depth") == 0
        first = first or settled_memory(process)  # the first round fills caches and thread stacks
    # A process as small as this one (100 MB) varies by a few MB, whatever it does.
    limit = max(first * 1.05, first + 12e6)
    until(lambda: process.memory_info().rss <= limit)


# Limits at the socket.


def test_a_body_beyond_the_limit_gets_a_readable_413(start_fake: StartServer) -> None:
    server = start_fake("--max-body-mb", "1")
    for size in (1 << 20, 3 << 20):  # refused by the application, refused by waitress
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            sock.sendall(f"{head}Content-Length: {size + 1}\r\n\r\n".encode())
            with contextlib.suppress(OSError):
                sock.sendall(b" " * (size + 1))
            answer = sock.recv(65536)
        assert b" 413 " in answer.split(b"\r\n")[0]
        assert json.loads(answer.partition(b"\r\n\r\n")[2] or b'{"error": 0}')["error"] is not None


def test_nonsense_on_the_socket_gets_a_readable_400_and_hurts_nobody(fake_server: ServerProcess) -> None:
    for nonsense in (
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", fake_server.port)) as sock:
            sock.sendall(nonsense)
            sock.settimeout(10)
            with contextlib.suppress(OSError):
                assert sock.recv(100).startswith(b"HTTP/1.")
    assert httpx.get(f"{fake_server.url}/health").status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_an_image_on_the_servers_own_network_is_refused_without_a_connection(
    fake_server: ServerProcess, host: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.setblocking(False)
        url = f"http://{host}:{bait.getsockname()[1]}/page.png"
        refused = httpx.post(f"{fake_server.url}/v1/chat/completions", json=chat(url=url))
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "image_fetch_refused")
        with pytest.raises(BlockingIOError):
            bait.accept()


def test_remote_images_arrive_where_any_address_is_allowed(start_fake: StartServer) -> None:
    server = start_fake("--remote-images", "any")
    body = base64.b64decode(data_url().partition(",")[2])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{web.server_port}/page.png"
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat(url=url))
    assert answer.json()["choices"][0]["message"]["content"] == TEXT


def test_keep_alive_serves_several_requests_on_one_connection(fake_server: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", fake_server.port)
    for _ in range(3):
        connection.request("POST", "/v1/chat/completions", json.dumps(chat()), {"Content-Type": "application/json"})
        assert connection.getresponse().read().startswith(b'{"id"')
    connection.close()


# Switching.


def test_requests_for_two_models_all_get_their_answers(start_fake: StartServer) -> None:
    server = start_fake("--slots", "2")
    results: list[int] = []

    def ask(number: int) -> None:
        model = ("deepseek-ocr", "tiny-ocr")[number % 2]
        results.append(httpx.post(f"{server.url}/v1/chat/completions", json=chat(model=model), timeout=60).status_code)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [200] * 16
    assert server.find("unloading model deepseek-ocr")


def test_the_deadline_of_a_request_ends_its_wait_for_a_busy_model(fake_server: ServerProcess) -> None:
    raw = Raw(fake_server, chat("endless", stream=True))
    raw.read_until(b'"0 "')
    refused = httpx.post(f"{fake_server.url}/v1/chat/completions", json=chat(model="tiny-ocr", deadline_s=0.5))
    raw.hang_up()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_busy")
    assert "retry-after" in refused.headers
    until(lambda: metric(fake_server, "ocr_requests_present") == 0)


def test_a_taken_port_is_said(fake_server: ServerProcess, start_fake: StartServer) -> None:
    with pytest.raises(AssertionError, match="cannot listen"):
        start_fake("--port", str(fake_server.port))


# Keys and logs of the process.


def test_keys_from_the_environment_protect_the_process(start_fake: StartServer) -> None:
    server = start_fake("--host", "0.0.0.0", OCR_ONNX_API_KEY="secret-key")
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret-key") as client:
        assert client.chat.completions.create(**chat()).choices[0].message.content == TEXT
    assert server.stop() == 0
    assert not server.find("without an API key|secret-key")


def test_the_json_log_is_one_object_a_line_without_the_users_text(start_fake: StartServer) -> None:
    server = start_fake("--log-format", "json", "--host", "0.0.0.0")
    httpx.post(f"{server.url}/v1/chat/completions", json=chat("PRIVATE"))
    httpx.post(f"{server.url}/v1/chat/completions", json=chat("PRIVATE broken"))
    bad = {"model": "deepseek-ocr", "messages": [{"role": "user", "content": [image_part("data:PRIVATE")]}]}
    httpx.post(f"{server.url}/v1/chat/completions", json=bad)
    assert server.stop() == 0
    entries = [json.loads(line) for line in server.lines]
    outcomes = [entry["outcome"] for entry in entries if entry["logger"] == "server.request"]
    assert outcomes == ["ok", "error", "rejected"]
    assert sum("without an API key" in entry.get("message", "") for entry in entries) == 1
    assert "PRIVATE" not in "\n".join(server.lines)
    assert "世界" not in "\n".join(server.lines)
