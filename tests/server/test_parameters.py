"""What a request may say and what it may not; how a body, a key and a picture may come."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from typing import Any

import pytest
from PIL import Image, features

from models.model_errors import ContextExceeded
from tests.pdfs import scanned_pdf
from tests.server.conftest import MakeService, Service, chat, data_url, image_part

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}


def both(service: Service, url: str | None = None, **more: Any) -> list[Any]:
    """The results of chat and Responses, plain and streamed."""
    body = {**chat(url=url), **more}
    response = {**body, "input": body["messages"]}
    del response["messages"]
    return [
        service.post({**one, "stream": stream}, path)
        for path, one in ((CHAT, body), (RESPONSES, response))
        for stream in (False, True)
    ]


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("response_format", {"type": "json_object"}),
        ("response_format", SCHEMA),
        ("text.format", {"type": "json_schema", "name": "x", "schema": {}}),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "read"}}),
        ("tool_choice", {"type": "allowed_tools", "mode": "required", "tools": []}),
        ("function_call", {"name": "read"}),
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("prompt", {"id": "pmpt_1"}),
        ("background", True),
        ("n", 2),
        ("modalities", ["text", "audio"]),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("logit_bias", {"5": 100}),
        ("guided_json", {}),
        ("vllm_xargs.other", 1),
    ],
)
def test_what_cannot_be_had_is_refused_in_openais_shape(service: Service, param: str, value: Any) -> None:
    first, *rest = param.split(".")
    for result in both(service, **{first: {rest[0]: value} if rest else value}):
        error = result.json["error"]
        assert (result.status_code, error["param"], error["code"]) == (400, param, "unsupported_parameter"), error
        assert error["type"] == "invalid_request_error"
        assert param in error["message"]


def test_what_asks_for_nothing_is_accepted(service: Service) -> None:
    tool = {"type": "function", "function": {"name": "x", "parameters": {}}}
    harmless: list[dict[str, Any]] = [
        {"response_format": {"type": "text"}, "text": {"format": {"type": "text"}, "verbosity": "low"}},
        {"tools": [tool] * 36, "tool_choice": "auto", "parallel_tool_calls": True, "functions": []},
        {"tools": [tool], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
        {"metadata": {"a": "b"}, "user": "me", "store": True, "service_tier": "auto", "safety_identifier": "x"},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "n": 1, "background": False},
        {"previous_response_id": None, "conversation": None, "prompt": None, "modalities": ["text"], "min_p": 0},
    ]
    for more in harmless:
        assert [result.status_code for result in both(service, **more)] == [200] * 4, more


def settings_after(service: Service, **more: Any) -> list[Any]:
    for result in both(service, **more):
        assert result.status_code == 200, result.text
    return [request.settings for request in service.source.models["deepseek-ocr"].requests[-4:]]


def test_the_guard_may_be_spelled_as_in_vllms_recipe(service: Service) -> None:
    arguments = {"ngram_size": 30, "window_size": 50, "whitelist_token_ids": [7, 8]}
    for settings in settings_after(service, vllm_xargs=arguments):
        found = (settings.no_repeat_ngram_size, settings.no_repeat_ngram_window, settings.no_repeat_ngram_whitelist)
        assert found == (30, 50, (7, 8))


def test_no_limit_of_ones_own_is_the_servers(make_service: MakeService) -> None:
    service = make_service(config_text="[inference]\nmax_new_tokens = 77\n")
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        assert [one.max_new_tokens for one in settings_after(service, **{name: -1})] == [77] * 4
    assert [one.max_new_tokens for one in settings_after(service, max_tokens=-1, max_completion_tokens=5)] == [5] * 4


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -2}, "max_completion_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"stop": [""]}, "stop"),
        ({"base_size": 1}, "base_size"),
        ({"transparency": "pink"}, "transparency"),
        ({"vllm_xargs": {"ngram_size": 999}}, "vllm_xargs.ngram_size"),
        ({"no_repeat_ngram_size": 5, "vllm_xargs": {"ngram_size": 6}}, "vllm_xargs.ngram_size"),
    ],
)
def test_an_error_names_the_field_that_the_client_sent(service: Service, more: dict[str, Any], param: str) -> None:
    for result in both(service, **more):
        error = result.json["error"]
        assert (result.status_code, error["param"]) == (400, param), error
        assert param in error["message"]
        assert "max_new_tokens" not in error["message"]


def test_a_prompt_beyond_the_context_has_openais_code(service: Service) -> None:
    service.post(chat())
    service.source.models["deepseek-ocr"].refuse = ContextExceeded("the prompt has 9,000 tokens")
    results = both(service)
    assert [one.json["error"]["code"] for one in results] == ["context_length_exceeded"] * 4
    assert [one.json["error"]["param"] for one in results] == ["messages", "messages", "input", "input"]
    assert service.application.in_flight.present == 0


PDF = base64.b64encode(scanned_pdf([Image.new("RGB", (40, 30), "white")])).decode()
PNG = data_url().partition(",")[2]


@pytest.mark.parametrize(
    ("part", "pages"),
    [
        (image_part(f"data:application/pdf;base64,{PDF}"), True),
        (image_part(f"data:application/octet-stream;base64,{PDF}"), True),
        (image_part(f"data:image/png;base64,{PDF}"), True),
        ({"type": "image_url", "image_url": PDF}, True),
        ({"type": "file", "file": {"file_data": PDF, "filename": "a.pdf"}}, True),
        ({"type": "input_file", "file_data": f"\n{PDF[:80]}\n{PDF[80:]}"}, True),
        ({"type": "file", "file": {"file_data": PNG}}, True),
        (image_part(PNG), False),
        (image_part(f"data:image/*;base64,{PNG}"), False),
        (image_part(f"data:;base64,{PNG}"), False),
    ],
)
def test_a_picture_or_pdf_is_read_in_whatever_part_it_comes(service: Service, part: Any, pages: bool) -> None:
    for path, name in ((CHAT, "messages"), (RESPONSES, "input")):
        body = {"model": "deepseek-ocr", name: [{"role": "user", "content": [part]}]}
        result = service.post(body, path)
        assert result.status_code == 200, result.text
        assert ("pages" in result.json["ocr"]) == pages


def encoded(form: str) -> str:
    return data_url(Image.new("RGB", (64, 48), "white"), form)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_avif_is_read(service: Service) -> None:
    assert [result.status_code for result in both(service, url=encoded("AVIF"))] == [200] * 4


def test_heic_is_read_where_its_plugin_is_installed(service: Service) -> None:
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    assert [result.status_code for result in both(service, url=encoded("HEIF"))] == [200] * 4


def test_transparency_reaches_the_pixels(service: Service) -> None:
    clear = data_url(Image.new("RGBA", (40, 30), (9, 9, 9, 0)))
    for transparency, colour in ((None, 255), ("white", 255), ("black", 0), ("drop", 9)):
        both(service, url=clear, transparency=transparency)
        seen = [request.images[0].getpixel((1, 1)) for request in service.source.models["deepseek-ocr"].requests[-4:]]
        assert seen == [(colour,) * 3] * 4


@pytest.mark.parametrize(
    "path", ["/health", "/v1/health", "/ready", "/v1/models", "/v1/models/tiny-ocr", "/metrics", "/openapi.json"]
)
def test_head_says_what_get_does_without_the_body(service: Service, path: str) -> None:
    service.post(chat())
    asked, told = service.client.simulate_get(path), service.client.simulate_head(path)
    assert told.status_code == asked.status_code == 200
    assert told.content == b""
    assert told.headers["content-type"] == asked.headers["content-type"]


def test_a_key_may_come_as_x_api_key(make_service: MakeService) -> None:
    service = make_service(api_keys=("secret",))
    assert service.post(chat(), headers={"X-Api-Key": "secret"}).status_code == 200
    assert service.post(chat(), headers={"Authorization": "Bearer secret"}).status_code == 200
    for headers in ({"X-Api-Key": "wrong"}, {"X-Api-Key": ""}, {}):
        assert service.post(chat(), headers=headers).status_code == 401


def packed(service: Service, body: bytes, encoding: str, path: str = CHAT) -> Any:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    return service.client.simulate_post(path, body=body, headers=headers)


def test_bodies_may_be_packed(service: Service) -> None:
    body = json.dumps(chat()).encode()
    zipped = gzip.compress(body)
    for encoding, raw in (("gzip", zipped), ("GZIP", zipped), ("deflate", zlib.compress(body)), ("identity", body)):
        assert packed(service, raw, encoding).status_code == 200, encoding


def test_packed_bodies_are_bounded_and_their_faults_told(make_service: MakeService) -> None:
    service = make_service(max_body_mb=1)
    bomb = gzip.compress(b" " * (50 << 20))
    assert len(bomb) < 100_000
    body = gzip.compress(json.dumps(chat()).encode())
    for raw, encoding, status, words in (
        (bomb, "gzip", 413, "limit is 1 MiB"),
        (b"no gzip", "gzip", 400, "no valid gzip"),
        (body[:-20], "gzip", 400, "ends too early"),
        (body, "br", 415, "plain or as gzip"),
    ):
        result = packed(service, raw, encoding)
        assert (result.status_code, words in result.json["error"]["message"]) == (status, True), result.text


def test_a_pdf_at_an_images_address_is_answered_with_the_right_form(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.fetch.Fetcher.fetch", lambda self, url, deadline=None: base64.b64decode(PDF))
    for result in both(service, url="https://example.com/a.pdf"):
        error = result.json["error"]
        assert (result.status_code, error["param"]) == (400, "image_url")
        assert "is a PDF" in error["message"]
        assert '{"type": "file"' in error["message"]
