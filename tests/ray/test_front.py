"""The door of the API on a cluster, with models that answer by themselves: no Ray is needed for it."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.http.auth import ApiKeys
from server.ray.bridge import Call, Head, answers, environ_of
from server.ray.front import Front, too_many
from server.ray.replica_metrics import ReplicaMetrics, merged


class Echo:
    """See ``front.Engines``: says its name and what it was asked."""

    def __init__(self, name: str) -> None:
        self.name, self.calls, self.left = name, [], 0  # type: ignore[var-annotated]

    async def ask(self, call: Call) -> AsyncIterator[Head | bytes]:
        self.calls.append(call)
        try:
            yield Head(200, ((b"content-type", b"text/plain"),))
            if call.path == b"/v1/models":
                yield json.dumps({"data": [{"id": self.name}, {"id": "another"}]}).encode()
                return
            for piece in (self.name.encode(), b" heard ", call.body):
                yield piece
        finally:
            self.left += 1


class Full(Echo):
    async def ask(self, call: Call) -> AsyncIterator[Head | bytes]:
        raise too_many()
        yield b""


async def _metrics() -> bytes:
    return b"ocr_pages_total 3\n"


def ask(
    front: Front, method: str, path: str, body: bytes = b"", *, gone_after: int | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request through the front: status, headers, body. gone_after : pieces after which the client is gone."""
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        messages = iter([{"type": "http.request", "body": body[:3], "more_body": True},
                         {"type": "http.request", "body": body[3:], "more_body": False}])  # fmt: skip

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: Any) -> None:
            if gone_after is not None and len(sent) >= gone_after:
                raise asyncio.CancelledError
            sent.append(message)

        given = {"content-length": str(len(body)), **{name.replace("_", "-"): text for name, text in headers.items()}}
        scope = {
            "type": "http", "method": method, "path": path.partition("?")[0], "raw_path": path.encode(),
            "query_string": path.partition("?")[2].encode(), "client": ("10.0.0.9", 5),
            "headers": [(name.encode(), text.encode()) for name, text in given.items()],
        }  # fmt: skip
        await front(scope, receive, send)

    try:
        asyncio.run(run())
    except asyncio.CancelledError:
        assert gone_after is not None
    start = sent[0]
    return (
        start["status"], {name.decode(): value.decode() for name, value in start["headers"]},
        b"".join(message.get("body", b"") for message in sent[1:]),
    )  # fmt: skip


def make(*names: str, desk: Echo | None = None, max_body: int = 1 << 20) -> tuple[Front, dict[str, Echo]]:
    models = {name: Echo(name) for name in names}
    return Front(models, ApiKeys(["secret"]), max_body, _metrics, desk), models


KEY = {"authorization": "Bearer secret"}


def test_a_request_goes_to_the_model_that_it_names_and_to_the_first_one_else() -> None:
    front, _ = make("a", "b")
    for model, answered in (("b", b"b"), ("a", b"a"), ("unknown", b"a"), (7, b"a")):
        status, _, body = ask(front, "POST", "/v1/chat/completions", json.dumps({"model": model}).encode(), **KEY)
        assert (status, body.partition(b" ")[0]) == (200, answered)
    assert ask(front, "POST", "/v1/chat/completions", b"no json", **KEY)[2].startswith(b"a heard no json")
    assert ask(front, "GET", "/v1/models/b", **KEY)[2].startswith(b"b")


def test_who_has_no_key_comes_no_further_than_health_and_ready() -> None:
    front, models = make("a")
    status, headers, body = ask(front, "POST", "/v1/chat/completions", b"{}")
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert json.loads(body)["error"]["code"] == "invalid_api_key"
    assert ask(front, "GET", "/metrics")[0] == 401
    assert not models["a"].calls
    assert ask(front, "GET", "/health")[0] == 200
    assert ask(front, "GET", "/ready")[0] == 200
    assert ask(front, "GET", "/metrics", x_api_key="secret")[2] == b"ocr_pages_total 3\n"


def test_a_body_beyond_the_limit_is_refused_by_its_header_and_by_its_bytes() -> None:
    front, models = make("a", max_body=10)
    assert ask(front, "POST", "/v1/chat/completions", b"x" * 11, **KEY)[0] == 413
    assert ask(front, "POST", "/v1/chat/completions", b"x" * 11, content_length="", **KEY)[0] == 413
    assert not models["a"].calls


def test_the_list_of_models_is_that_of_all_engines() -> None:
    front, _ = make("a", "b")
    assert json.loads(ask(front, "GET", "/v1/models", **KEY)[2])["data"] == [{"id": "a"}, {"id": "b"}]


def test_files_and_jobs_go_to_the_one_replica_that_keeps_them() -> None:
    desk = Echo("desk")
    front, _ = make("a", desk=desk)
    assert ask(front, "POST", "/v1/files", b"file", **KEY)[2] == b"desk heard file"
    assert ask(front, "GET", "/v1/ocr/jobs/7", **KEY)[2].startswith(b"desk")
    assert ask(front, "POST", "/v1/ocr", b'{"document": {"file_id": "1"}}', **KEY)[2].startswith(b"desk")
    assert ask(front, "POST", "/v1/ocr", b"{}", **KEY)[2].startswith(b"a")
    without, _ = make("a")
    status, _, body = ask(without, "POST", "/v1/files", b"file", **KEY)
    assert status == 501
    assert "--desk" in json.loads(body)["error"]["message"]


def test_full_queues_are_503_with_a_time_to_come_back() -> None:
    front = Front({"a": Full("a")}, ApiKeys([]), 1000, _metrics, None)
    status, headers, body = ask(front, "POST", "/v1/chat/completions", b"{}")
    assert (status, json.loads(body)["error"]["code"]) == (503, "queue_full")
    assert int(headers["retry-after"]) > 0


def test_an_engine_is_left_when_the_client_hangs_up() -> None:
    front, models = make("a")
    ask(front, "POST", "/v1/chat/completions", b"{}", gone_after=2, **KEY)
    assert models["a"].left == 1


def test_wsgi_gets_the_request_as_waitress_gives_it() -> None:
    call = Call("POST", b"/v1/a%20b", b"x=1&y", ((b"content-type", b"text/x"), (b"x-a", b"1"), (b"x-a", b"2"),
                (b"transfer-encoding", b"chunked")), b"body", "10.0.0.9")  # fmt: skip
    environ = environ_of(call, lambda: True)
    assert (environ["PATH_INFO"], environ["QUERY_STRING"], environ["CONTENT_TYPE"]) == ("/v1/a b", "x=1&y", "text/x")
    assert (environ["HTTP_X_A"], environ["CONTENT_LENGTH"], environ["REMOTE_ADDR"]) == ("1,2", "4", "10.0.0.9")
    assert "HTTP_TRANSFER_ENCODING" not in environ
    assert environ["waitress.client_disconnected"]()


def test_an_answer_comes_as_it_is_made_and_whoever_stops_listening_is_told_to_the_application() -> None:
    from concurrent.futures import ThreadPoolExecutor

    closed: list[bool] = []

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("207 Odd", [("X-One", "1")])

        def body() -> Any:
            try:
                for number in range(1000):
                    yield b"%d " % number
            finally:
                closed.append(environ["waitress.client_disconnected"]())

        return body()

    async def listen(most: int) -> list[Head | bytes]:
        found: list[Head | bytes] = []
        pieces = answers(application, Call("GET", b"/", b"", (), b"", ""), threads)
        async for piece in pieces:
            found.append(piece)
            if len(found) == most:
                break
        await pieces.aclose()  # type: ignore[attr-defined]
        return found

    with ThreadPoolExecutor(2) as threads:
        whole = asyncio.run(listen(5000))
        assert whole[0] == Head(207, ((b"x-one", b"1"),))
        assert b"".join(whole[1:]) == b"".join(b"%d " % number for number in range(1000))  # type: ignore[arg-type]
        assert closed == [False]
        assert len(asyncio.run(listen(3))) == 3
    assert closed == [False, True]


def test_an_application_that_fails_fails_the_answer() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        raise ZeroDivisionError("oh")

    async def listen() -> None:
        async for _ in answers(application, Call("GET", b"/", b"", (), b"", ""), threads):
            pass

    with ThreadPoolExecutor(1) as threads, pytest.raises(ZeroDivisionError):
        asyncio.run(listen())


def test_metrics_of_replicas_are_one_text_with_a_label_more(monkeypatch: pytest.MonkeyPatch) -> None:
    from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

    texts = {}
    for replica, count in (("r1", 2), ("r2", 5)):
        registry = CollectorRegistry()
        Counter("ocr_requests", "Requests", ["model"], registry=registry).labels("m").inc(count)
        Histogram("ocr_stage_seconds", "Stages", buckets=(1, 2), registry=registry).observe(count)
        texts[replica] = generate_latest(registry).decode()
    found = merged(texts).decode()
    assert found.count("# TYPE ocr_requests_total counter") == 1
    assert 'ocr_requests_total{model="m",replica="r1"} 2.0' in found
    assert 'ocr_requests_total{model="m",replica="r2"} 5.0' in found
    assert 'ocr_stage_seconds_bucket{le="2.0",replica="r1"} 1.0' in found
    numbers = ReplicaMetrics()
    numbers.put("r1", texts["r1"])
    monkeypatch.setattr("server.ray.replica_metrics.SILENCE", -1.0)
    assert b"r1" not in numbers.text()


def test_the_settings_of_scaling_are_none_that_ray_says_it_will_refuse() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ocr-onnx[ray]'")
    from server.ray.service import app

    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        app({"model": "tiny-ocr", "threads": "1", "replicas": "1-3"})
