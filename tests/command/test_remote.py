"""``--server``: pages go to a running server, whatever happens on the way."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.command import remote
from server.command.server_address import ServerAddress
from tests.command.conftest import ROOT, Program, command, environment, page_of
from tests.command.faulty_proxy import FaultyProxy, Handler
from tests.pdfs import scanned_pdf
from tests.server.conftest import ServerProcess
from tests.waiting import until


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server process with a scripted model."""
    server = ServerProcess(["--slots", "4"], tmp_path_factory.mktemp("server"), "tests.server.fake_server")
    yield server
    server.kill()


@pytest.fixture
def proxy(behind: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = FaultyProxy(behind.url)
    yield server
    server.shutdown()
    server.server_close()


TEXT = "Grüße, 世界."


def document(tmp_path: Path, pages: int = 3) -> Path:
    path = tmp_path / "a.pdf"
    path.write_bytes(scanned_pdf([page_of(number) for number in range(pages)]))
    return path


def read(ocr: Program, proxy: FaultyProxy, path: Path, *more: str) -> int:
    return ocr("read", path, "--server", proxy.url, "--format", "txt", *more)


def test_pages_go_to_the_server_and_no_model_is_loaded(ocr: Program, proxy: FaultyProxy, tmp_path: Path) -> None:
    assert read(ocr, proxy, document(tmp_path), "--model", "tiny-ocr", "--top-k", "none", "--seed", "5") == 0
    assert ocr.out == f"{TEXT}\n\f{TEXT}\n\f{TEXT}\n"
    assert ocr.readers == []
    body = proxy.chats[0][1]
    assert body["model"] == "tiny-ocr"
    assert (body["max_completion_tokens"], body["top_k"], body["seed"]) == (8192, 0, 5)
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert len(body["messages"][0]["content"]) == 1  # no prompt: the server takes its model's own task


def test_the_first_model_is_the_servers_own(ocr: Program, proxy: FaultyProxy, tmp_path: Path) -> None:
    assert read(ocr, proxy, document(tmp_path, 1)) == 0
    assert proxy.chats[0][1]["model"] == "deepseek-ocr"
    assert ocr("read", document(tmp_path, 1), "--server", proxy.url + "/v1/", "--format", "txt") == 0


def test_task_and_prompt_are_passed_on(ocr: Program, proxy: FaultyProxy, tmp_path: Path) -> None:
    assert read(ocr, proxy, document(tmp_path, 1), "--task", "locate", "--prompt", "the total") == 0
    body = proxy.chats[-1][1]
    assert body["task"] == "locate"
    assert body["messages"][0]["content"][1] == {"type": "text", "text": "the total"}


def test_raw_text_is_asked_of_the_server(ocr: Program, proxy: FaultyProxy, tmp_path: Path) -> None:
    for flags, raw in (([], False), (["--raw"], True)):
        assert read(ocr, proxy, document(tmp_path, 1), *flags) == 0
        assert proxy.chats[-1][1]["ocr"]["raw"] is raw


def test_a_schema_is_passed_on(ocr: Program, proxy: FaultyProxy, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"total": {"type": "number"}}}
    (tmp_path / "fields.json").write_text(json.dumps(schema))
    assert ocr("read", document(tmp_path, 1), "--server", proxy.url, "--schema", tmp_path / "fields.json") != 0
    assert "cannot be asked for fields" in ocr.err  # the server's model says so
    assert proxy.chats[-1][1]["response_format"]["json_schema"]["schema"] == schema


def test_a_schema_that_is_none_is_told_with_its_file(ocr: Program, tmp_path: Path) -> None:
    (tmp_path / "fields.json").write_text("[1]")
    assert ocr("read", document(tmp_path, 1), "--schema", tmp_path / "fields.json") == 2
    assert "fields.json cannot be taken: the schema is a list" in ocr.err


def test_tokens_boxes_and_timings_come_back(ocr: Program, proxy: FaultyProxy, tmp_path: Path) -> None:
    assert ocr("read", document(tmp_path, 1), "--server", proxy.url, "--format", "json") == 0
    page = json.loads(ocr.out)["pages"][0]
    assert page["usage"] == {"prompt_tokens": 15, "completion_tokens": 4}
    assert page["finish_detail"] == "eos"
    assert page["timings"]["decode"] >= 0
    events = (
        b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
        b'data: {"choices": [], "ocr": {"finish_detail": "loop", "boxes": '
        b'[{"label": "a", "text": "b", "box": [1, 2, 3, 4]}]}}'
        b"\n\ndata: [DONE]\n\n"
    )
    proxy.fault = lambda request, number: request.answer(200, events)
    assert ocr("read", document(tmp_path, 1), "--server", proxy.url, "--format", "json") == 0
    page = json.loads(ocr.out)["pages"][0]
    assert page["boxes"] == [{"label": "a", "text": "b", "box": [1, 2, 3, 4]}]
    assert page["finish_detail"] == "loop"


def test_the_sentence_about_a_missing_picture_is_no_page(ocr: Program, proxy: FaultyProxy, tmp_path: Path) -> None:
    def without_pictures(request: Handler, number: int) -> bool:
        body = json.loads(request.body)
        body["messages"][0]["content"] = "Free OCR."
        request.body = json.dumps(body).encode()
        return False

    proxy.fault = without_pictures
    assert ocr("read", document(tmp_path, 1), "--server", proxy.url, "-o", tmp_path / "out") == 1
    assert "got no image" in (tmp_path / "out" / "a.md").read_text()
    assert "Attach" not in (tmp_path / "out" / "a.md").read_text()


def test_a_prompt_that_the_servers_model_does_not_know_is_told(
    ocr: Program, proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(ocr, proxy, document(tmp_path, 2), "--model", "tiny-ocr", "--prompt", "Free OCR.") == 0
    assert not [record for record in caplog.records if "its own prompts" in record.message]
    assert read(ocr, proxy, document(tmp_path, 2), "--model", "tiny-ocr", "--prompt", "What does it say?") == 0
    assert len([record for record in caplog.records if "its own prompts" in record.message]) == 1


def stream(*pieces: str) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    chunks = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    return head + b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks)


ERROR_EVENT = 'data: {"error": {"message": "the model failed", "type": "server_error"}}\n\ndata: [DONE]\n\n'
CANCELLED = 'data: {"choices": [], "ocr": {"finish_detail": "cancelled"}}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    "fault",
    [
        lambda request: request.answer(503, b'{"error": {"message": "queue full"}}'),
        lambda request: request.answer(502, b"<html>Bad Gateway</html>"),
        lambda request: request.answer(429, b""),
        lambda request: request.answer(500, b"{}"),
        lambda request: request.hang_up(),
        lambda request: request.hang_up(after=b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\ndata: "),
        lambda request: request.hang_up(after=b"nonsense\r\n\r\n"),
        lambda request: request.hang_up(after=stream("half of", " a page")),
        lambda request: request.hang_up(after=stream("half of") + ERROR_EVENT.encode()),
        lambda request: request.hang_up(after=stream("half of") + CANCELLED.encode()),
        lambda request: request.hang_up(after=stream() + b"data: {broken\n\n"),
    ],
    ids=[
        "503", "502", "429", "500", "lost", "cut off", "no HTTP", "stream broken off", "failed in the stream",
        "server stopped", "no JSON",
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(
    ocr: Program, proxy: FaultyProxy, tmp_path: Path, fault: Callable[[Handler], bool]
) -> None:
    proxy.fault = lambda request, number: number % 2 == 0 and fault(request)
    assert read(ocr, proxy, document(tmp_path), "--jobs", "2") == 0, ocr.err
    assert ocr.out == f"{TEXT}\n\f{TEXT}\n\f{TEXT}\n"
    assert len(proxy.chats) > 3


def test_retry_after_is_honoured(ocr: Program, proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.fault = lambda request, number: number == 0 and request.answer(503, b"{}", {"Retry-After": "2"})
    assert read(ocr, proxy, document(tmp_path, 1)) == 0
    assert proxy.chats[1][0] - proxy.chats[0][0] >= 2


@pytest.mark.parametrize(
    ("text", "low", "high"), [(None, 0, 0), ("3.5", 3.5, 3.5), ("-1", 0, 0), ("soon", 0, 0), ("date", 28, 31)]
)
def test_retry_after_is_seconds_or_a_date(text: str | None, low: float, high: float) -> None:
    if text == "date":
        text = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert low <= remote.seconds_to_wait(text) <= high


def test_a_page_that_the_server_refuses_is_recorded_without_more_tries(
    ocr: Program, proxy: FaultyProxy, tmp_path: Path
) -> None:
    proxy.fault = lambda request, number: number == 1 and request.answer(413, b'{"error": {"message": "too large"}}')
    assert read(ocr, proxy, document(tmp_path), "--jobs", "1") == 1
    assert ocr.out == f"{TEXT}\n\f\f{TEXT}\n"
    assert "the server refuses the page: too large" in ocr.err
    assert len(proxy.chats) == 3


def test_a_page_that_never_succeeds_is_given_up_and_retried_later(
    ocr: Program, proxy: FaultyProxy, tmp_path: Path
) -> None:
    path = document(tmp_path)
    proxy.fault = lambda request, number: number in (1, 2, 3) and request.answer(503, b"{}")
    assert read(ocr, proxy, path, "--jobs", "1", "--retries", "2", "-o", "out") == 1
    assert "given up after 3 tries: 503" in ocr.err
    assert len(proxy.chats) == 5
    assert read(ocr, proxy, path, "-o", "out", "--retry-failed") == 0
    assert len(proxy.chats) == 6
    assert (tmp_path / "out/a.txt").read_text() == f"{TEXT}\n\f{TEXT}\n\f{TEXT}\n"


def test_a_server_that_is_away_for_a_while_is_told_once(
    ocr: Program, proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = document(tmp_path, 6)
    busy = {0, 1}
    away = {3, 4, 5, 8}  # twice, with a page between
    proxy.fault = lambda request, number: (
        (number in away and request.hang_up()) or (number in busy and request.answer(503, b"{}"))
    )
    assert read(ocr, proxy, path, "--jobs", "1", "-o", "out") == 0
    told = [record.message for record in caplog.records if "trying again" in record.message]
    assert len(told) == 2
    assert all(message.startswith(f"{proxy.url}: ") for message in told)


def test_a_server_that_is_gone_ends_the_run_and_resume_goes_on(
    ocr: Program, proxy: FaultyProxy, tmp_path: Path
) -> None:
    path = document(tmp_path, 20)
    proxy.fault = lambda request, number: number >= 5 and request.hang_up()
    assert read(ocr, proxy, path, "--jobs", "1", "--retries", "1", "-o", "out") == 1
    assert "does not answer any more" in ocr.err
    assert "go on with --resume" in ocr.err
    assert len(proxy.chats) == 5 + 2 * remote.GIVE_UP_AFTER
    proxy.fault = lambda request, number: False
    proxy.chats.clear()
    assert read(ocr, proxy, path, "-o", "out", "--resume") == 0
    assert len(proxy.chats) == 15


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_busy_counts_as_one_that_answers(
    ocr: Program, proxy: FaultyProxy, tmp_path: Path, status: int
) -> None:
    path = document(tmp_path, remote.GIVE_UP_AFTER + 2)
    proxy.fault = lambda request, number: request.answer(status, b"{}")
    assert read(ocr, proxy, path, "--jobs", "1", "--retries", "1", "-o", "out") == 1
    assert "does not answer any more" not in ocr.err
    assert len(proxy.chats) == 2 * (remote.GIVE_UP_AFTER + 2)
    proxy.fault = lambda request, number: False
    assert read(ocr, proxy, path, "-o", "out", "--resume") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--server", "http://[gpu:8000"], "--server 'http://[gpu:8000' is no address"),
        (["--server", "http://gpu:99999"], "is no address; write one such as http://gpu:8000"),
        (["--server", "ftp://me:secret@gpu"], "--server 'gpu' is no address"),
        (["--timeout", "-1"], "expected seconds, above 0 and at most 1000000, found '-1'"),
        (["--timeout", "nan"], "found 'nan'"),
        (["--timeout", "1e12"], "found '1e12'"),
        (["--api-key", "k\nX-Evil: 1"], "character 2 of the API key is '\\n', which no HTTP header holds"),
        (["--api-key", "k€"], "character 2 of the API key is '\\u20ac'"),
    ],
)
def test_wrong_flags_are_explained(ocr: Program, tmp_path: Path, arguments: list[str], words: str) -> None:
    assert ocr("read", document(tmp_path, 1), "--server", "http://127.0.0.1:9", *arguments) == 2
    assert words in ocr.err
    assert "secret" not in ocr.err


def test_a_proxy_that_is_no_address_is_explained(ocr: Program, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@[x")
    monkeypatch.setenv("no_proxy", "")
    assert ocr("read", document(tmp_path, 1), "--server", "http://example.com") == 2
    assert "http_proxy '[x' is no address" in ocr.err


def test_user_and_password_of_an_address_are_sent_and_written_nowhere(
    ocr: Program, proxy: FaultyProxy, tmp_path: Path
) -> None:
    url = proxy.url.replace("//", "//me:p%40ss@")
    assert ocr("read", document(tmp_path, 1), "--server", url, "-o", "out", "--format", "json") == 0
    assert proxy.chats[0][2]["Authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()
    written = [path.read_text() for path in (tmp_path / "out").iterdir()]
    assert len(written) == 2
    assert not any("p%40ss" in text or "me:" in text for text in written)
    assert all(proxy.url in text for text in written)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "refuses the API key: no; set OCR_ONNX_API_KEY"),
        (404, "no; is the address right"),
        (302, "is the address"),
    ],
)
def test_what_will_not_pass_ends_the_run_at_once(
    ocr: Program, proxy: FaultyProxy, tmp_path: Path, status: int, words: str
) -> None:
    proxy.fault = lambda request, number: request.answer(status, b'{"error": {"message": "no"}}')
    assert read(ocr, proxy, document(tmp_path), "--jobs", "1") == 1
    assert words in ocr.err
    assert len(proxy.chats) == 1


def test_an_address_where_nobody_answers_is_told_soon(ocr: Program, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.01)
    assert ocr("read", document(tmp_path), "--server", "http://127.0.0.1:9") == 1
    assert "http://127.0.0.1:9: given up after 3 tries: ConnectionRefusedError" in ocr.err


def test_an_api_key_comes_from_flag_or_environment(
    ocr: Program, proxy: FaultyProxy, tmp_path: Path, monkeypatch: Any
) -> None:
    path = document(tmp_path, 1)
    assert read(ocr, proxy, path, "--api-key", "k1") == 0
    monkeypatch.setenv("OCR_ONNX_API_KEY", "k2,k3")
    assert read(ocr, proxy, path) == 0
    assert [headers.get("Authorization") for _, _, headers in proxy.chats] == ["Bearer k1", "Bearer k2"]


def test_a_proxy_of_the_environment_is_used(ocr: Program, proxy: FaultyProxy, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    behind, proxy.behind = proxy.behind, ""  # a forward proxy gets the whole address
    monkeypatch.setenv("no_proxy", "")
    assert ocr("read", document(tmp_path, 1), "--server", behind, "--format", "txt") == 0
    assert ocr.out == f"{TEXT}\n"
    assert "Proxy-Authorization" not in proxy.chats[0][2]
    monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//me:p%40ss@"))
    with_login = behind.replace("//", "//you:secret@")
    assert ocr("read", document(tmp_path, 1), "--server", with_login, "--format", "txt") == 0
    assert proxy.chats[1][2]["Proxy-Authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert len(proxy.chats) == 2


def test_a_proxy_of_the_environment_is_told_who_asks_for_a_tunnel(monkeypatch: Any) -> None:
    monkeypatch.setenv("https_proxy", "http://me:p%40ss@proxy:3128")
    monkeypatch.setenv("no_proxy", "")
    connection, _, headers = ServerAddress.of("https://gpu", "").connection("/v1/models", 1.0)
    assert connection._tunnel_headers["Proxy-Authorization"] == (  # type: ignore[attr-defined]
        "Basic " + base64.b64encode(b"me:p@ss").decode()
    )
    assert headers == {"User-Agent": "ocr-onnx"}  # the server at the tunnel's end must not see the login


def test_ctrl_c_on_the_last_try_is_no_failure_of_the_page(ocr: Program, proxy: FaultyProxy, tmp_path: Path) -> None:
    ended: list[bytes] = []

    def interrupt(request: Handler, number: int) -> bool:
        request.wfile.write(stream("half of"))
        request.wfile.flush()
        os.kill(os.getpid(), signal.SIGINT)
        request.connection.settimeout(60)
        ended.append(request.connection.recv(1))  # the client ends its connection, which looks like the answer's end
        return request.hang_up()

    proxy.fault = interrupt
    assert read(ocr, proxy, document(tmp_path, 1), "--retries", "0", "-o", "out") == 130
    until(lambda: ended)  # the proxy's thread may see the end after the client has said that it is over
    assert ended == [b""]
    assert "1 page not read" in ocr.err
    assert "failed" not in (tmp_path / "out/ocr-run.jsonl").read_text()


def test_ctrl_c_does_not_wait_for_a_silent_server(proxy: FaultyProxy, tmp_path: Path) -> None:
    silence = threading.Event()
    proxy.fault = lambda request, number: number >= 1 and (silence.wait(60), request.hang_up())[1]
    path = document(tmp_path, 4)
    arguments = ["read", path, "-o", tmp_path / "out", "--server", proxy.url, "--jobs", "1", "--format", "txt"]
    process = subprocess.Popen(command(*arguments), cwd=ROOT, env=environment(tmp_path), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(proxy.chats) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    silence.set()
    assert process.returncode == 130, errors.decode()
    assert b"3 pages not read" in errors
    assert len(list((tmp_path / "out").glob(".ocr-parts/*/1.json"))) == 1
