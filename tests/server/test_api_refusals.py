"""What the API refuses, and how it says so: bodies, origins, keys, paths."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from models.model_errors import ConfigError, InvalidInput
from runtime.requests import Request
from server.api_errors import ApiError
from server.http import auth, schema
from server.http.messages import from_chat
from server.options import KEYS_VARIABLE
from tests.server.conftest import MakeService, Service, chat, image_part
from tests.server.fake import Step


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"model": "nope", "messages": chat()["messages"]}, 404, "model", "deepseek-ocr"),
        ({"model": "hunyuan-ocr", "messages": chat()["messages"]}, 404, "model", "does not support"),
        ({"messages": chat()["messages"]}, 400, "model", "required"),
        ({"model": 3, "messages": chat()["messages"]}, 400, "model", "string"),
        ({"model": "deepseek-ocr"}, 400, "messages", "required"),
        ({"model": "deepseek-ocr", "messages": []}, 400, "messages", "at least 1"),
        ({"model": "deepseek-ocr", "messages": [{"role": "user", "content": 3}]}, 400, "messages.0.content", ""),
        ({**chat(), "n": 2}, 400, "n", "one answer"),
        ({**chat(), "temperature": "hot"}, 400, "temperature", "number"),
        ({**chat(), "temperature": -1}, 400, "temperature", "temperature is -1"),
        ({**chat(), "max_tokens": 0}, 400, "max_tokens", "at least 1"),
        ({**chat(), "max_tokens": True}, 400, "max_tokens", "integer"),
        ({**chat(), "max_tokens": 5, "max_completion_tokens": 6}, 400, "max_tokens", "disagree"),
        ({**chat(), "stop": [""]}, 400, "stop", "empty string"),
        (chat(url="file:///etc/passwd"), 400, "image_url", "data: URL"),
        (chat(url="/etc/passwd"), 400, "image_url", "data: URL"),
        ([], 400, None, "JSON object"),
    ],
)
def test_mistakes_are_explained_in_openais_shape(
    service: Service, body: Any, status: int, param: str | None, words: str
) -> None:
    result = service.post(body)
    error = result.json["error"]
    assert (result.status_code, error["param"]) == (status, param)
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("raw", [b"", b"{", b'{"a": NaN}', b'"\\ud800"', b"\xff", b"[" * 100_000, b"1" * 10_000])
def test_bodies_that_are_no_json_object_are_refused(service: Service, raw: bytes) -> None:
    result = service.client.simulate_post(
        "/v1/chat/completions", body=raw, headers={"Content-Type": "application/json"}
    )
    assert (result.status_code, result.json["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("media_type", ["text/plain", "text/plain;json", "application/x-www-form-urlencoded", None])
def test_what_a_web_page_of_another_origin_may_send_is_refused(service: Service, media_type: str | None) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    body = json.dumps(chat()).encode()
    result = service.client.simulate_post("/v1/chat/completions", body=body, headers=headers)
    assert result.status_code == 415
    assert "application/json" in result.json["error"]["message"]


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON; charset=utf-8", "application/x+json"])
def test_json_is_taken_by_all_its_names(service: Service, media_type: str) -> None:
    body = json.dumps(chat()).encode()
    result = service.client.simulate_post("/v1/chat/completions", body=body, headers={"Content-Type": media_type})
    assert result.status_code == 200


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([{"role": "user", "content": [{}] * 60_000}], 400),
        ([{}] * 60_000, 400),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}] * 1001}], 400),
        ([{"role": "user", "content": "x", "extra": [[]] * 500_001}], 413),
        ([{"role": "user", "content": "a" * 1_000_001}], 400),
    ],
)
def test_many_small_values_are_refused_before_they_fill_the_memory(
    service: Service, messages: list[Any], status: int
) -> None:
    body = json.dumps({"model": "deepseek-ocr", "messages": messages}).encode()
    tracemalloc.start()
    try:
        with pytest.raises((ApiError, InvalidInput)):
            from_chat(schema.parse(body, schema.ChatRequest).messages)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60e6  # one error for each of 60,000 items took 460 MB
    result = service.post({"model": "deepseek-ocr", "messages": messages})
    assert result.status_code == status
    assert len(result.text) < 1000


def test_the_answer_of_a_long_request_does_not_keep_its_images(make_service: MakeService) -> None:
    """The base64 of 68 waiting requests would be gigabytes."""
    kept: list[int] = []

    def look(request: Request) -> Iterable[Step]:
        gc.collect()
        kept.append(sum(type(one) is schema.ImagePart for one in gc.get_objects()))
        yield "text"

    assert make_service(script=look).post(chat()).status_code == 200
    assert kept == [0]


def test_a_body_beyond_the_limit_is_refused(make_service: MakeService) -> None:
    result = make_service(max_body_mb=1).post({**chat(), "user": "x" * (1 << 20)})
    assert (result.status_code, result.json["error"]["code"]) == (413, "too_large")


def test_unknown_paths_and_methods_answer_in_openais_shape(service: Service) -> None:
    result = service.client.simulate_get("/v2/nothing")
    assert (result.status_code, result.json["error"]["code"]) == (404, "not_found")
    result = service.client.simulate_delete("/v1/chat/completions")
    assert (result.status_code, result.json["error"]["code"]) == (405, "method_not_allowed")
    assert "POST" in result.headers["allow"]


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/nothing", "/healthy"])
def test_everything_but_health_needs_the_key(make_service: MakeService, path: str) -> None:
    client = make_service(api_keys=("one", "zwei-ü")).client
    for header in (None, "Bearer", "Bearer two", "Basic one", "one", "Bearer one two"):
        result = client.simulate_get(path, headers={"Authorization": header} if header else {})
        assert (result.status_code, result.json["error"]["code"]) == (401, "invalid_api_key")
        assert result.headers["www-authenticate"] == "Bearer"
    for open_path in ("/health", "/v1/health", "/ready"):
        assert client.simulate_get(open_path).status_code in (200, 503)
    assert client.simulate_get(path, headers={"Authorization": "bearer one"}).status_code in (200, 404)


def test_keys_come_from_the_environment_and_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\n three \n")
    monkeypatch.setenv(KEYS_VARIABLE, "one, two")
    assert auth.extra_keys(file) == ["one", "two", "three"]
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no key"):
        auth.extra_keys(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        auth.extra_keys(tmp_path / "missing")


def test_cors_is_off_by_default_and_allows_named_origins(make_service: MakeService) -> None:
    ask = {
        "Origin": "http://ui:3000",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    off = make_service().client.simulate_options("/v1/chat/completions", headers=ask)
    assert "access-control-allow-origin" not in off.headers
    client = make_service(cors_origins=("http://ui:3000",), api_keys=("k",)).client
    preflight = client.simulate_options("/v1/chat/completions", headers=ask)
    assert preflight.headers["access-control-allow-origin"] == "http://ui:3000"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == "authorization"
    refused = client.simulate_get("/v1/models", headers={"Origin": "http://ui:3000"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "http://ui:3000")
    other = client.simulate_get("/v1/models", headers={"Origin": "http://evil", "Authorization": "Bearer k"})
    assert "access-control-allow-origin" not in other.headers


def test_refused_requests_leave_their_place(service: Service) -> None:
    for body in ({}, chat(model="nope"), chat(url="x"), chat(temperature=-1), chat("x", task="free")):
        assert service.post(body).status_code in (400, 404)
    assert service.application.in_flight.present == 0


def test_too_many_images_are_refused(make_service: MakeService) -> None:
    service = make_service(max_images=2)
    content = [image_part()] * 3
    result = service.post({"model": "deepseek-ocr", "messages": [{"role": "user", "content": content}]})
    assert (result.status_code, result.json["error"]["code"]) == (400, "too_many_images")
