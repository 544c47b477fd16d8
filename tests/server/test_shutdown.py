"""The end of a server process: what runs may finish, within its time."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import StartServer, chat
from tests.server.sockets import Raw, metric
from tests.waiting import until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_requests_finish_and_refuses_new_ones(
    start_fake: StartServer, tmp_path: Path, number: int
) -> None:
    gate = tmp_path / "gate"
    server = start_fake(GATE=str(gate))
    raw = Raw(server, chat("held", stream=True))
    raw.read_until(b'"0 "')
    server.process.send_signal(number)
    server.wait_for_line("shutting down")
    refused = httpx.post(f"{server.url}/v1/chat/completions", json=chat())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert httpx.get(f"{server.url}/ready").status_code == 503
    assert httpx.get(f"{server.url}/health").status_code == 200
    gate.touch()
    raw.read_until(b"[DONE]")
    assert b'"39 "' in raw.received
    assert b'"finish_reason":"stop"' in raw.received
    assert server.process.wait(30) == 0


def test_requests_beyond_the_shutdown_timeout_end_with_a_clean_last_event(start_fake: StartServer) -> None:
    server = start_fake("--shutdown-timeout", "2")
    streamed = Raw(server, chat("endless", stream=True))
    plain = Raw(server, chat("endless"))
    body = chat("endless", stream=True)
    response = Raw(server, {"model": body["model"], "input": body["messages"], "stream": True}, "/v1/responses")
    streamed.read_until(b'"0 "')
    response.read_until(b'"0 "')
    until(lambda: metric(server, "ocr_active_requests") == 3)
    assert server.stop() == 0
    assert b'"finish_detail":"cancelled"' in streamed.read_all()
    assert b"[DONE]" in streamed.received
    assert b"event: response.incomplete" in response.read_all()
    answer = json.loads(plain.read_all().partition(b"\r\n\r\n")[2])
    assert answer["choices"][0]["message"]["content"].startswith("0 1 2")
    assert answer["ocr"]["finish_detail"] == "cancelled"


def test_a_second_signal_ends_requests_at_once(start_fake: StartServer) -> None:
    server = start_fake("--shutdown-timeout", "600")
    raw = Raw(server, chat("endless", stream=True))
    raw.read_until(b'"0 "')
    server.process.send_signal(signal.SIGINT)
    server.wait_for_line("shutting down")
    assert server.stop(signal.SIGINT) == 0
    assert b"[DONE]" in raw.read_all()


def test_an_idle_server_stops_at_once(start_fake: StartServer) -> None:
    server = start_fake("--shutdown-timeout", "600")
    assert server.stop() == 0
    assert server.find("stopped")
