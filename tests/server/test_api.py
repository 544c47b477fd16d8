"""The HTTP API inside one process: answers, errors, limits, keys, precedence."""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from models.errors import ConfigError, InvalidInput
from runtime.errors import EngineClosed, ModelUnavailable, QueueFull
from runtime.requests import Request
from server.api_errors import ApiError
from server.http import auth, schema
from server.http.messages import from_chat
from server.options import KEYS_VARIABLE
from tests.server.conftest import MODELS, MakeService, Service, chat, data_url, image_part
from tests.server.fake import Step


def events(result: Any) -> list[dict[str, Any]]:
    """The JSON documents of a stream of server-sent events."""
    blocks = [block for block in result.text.split("\n\n") if block and not block.startswith(":")]
    lines = [next(line for line in block.split("\n") if line.startswith("data: ")) for block in blocks]
    return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]


def ending(reason: str, detail: str) -> Any:
    def script(request: Request) -> Iterable[Step]:
        return ["partial", (reason, detail)]  # type: ignore[list-item]

    return script


def broken(request: Request) -> Iterable[Step]:
    yield "some text"
    raise RuntimeError("a secret of the engine")


def test_a_chat_answer_has_text_usage_and_the_reason_of_its_end(service: Service) -> None:
    answer = service.post(chat()).json
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hello, world.", "refusal": None}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens"] == 15
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["total_tokens"] == 19
    assert answer["ocr"]["finish_detail"] == "eos"
    assert set(answer["ocr"]["timings"]) == {"queued", "prepare", "vision", "prefill", "decode", "first_token"}


def test_a_chat_stream_has_a_role_then_the_text_then_the_reason(service: Service) -> None:
    result = service.post(chat(stream=True))
    assert result.headers["content-type"].startswith("text/event-stream")
    assert result.text.endswith("data: [DONE]\n\n")
    chunks = events(result)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Hello, world."
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:]] == [None, "stop"]
    assert chunks[-1]["ocr"]["finish_detail"] == "eos"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stream_sends_usage_last_when_asked(service: Service) -> None:
    chunks = events(service.post(chat(stream=True, stream_options={"include_usage": True})))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 19
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_the_responses_stream_is_the_complete_typed_sequence(service: Service) -> None:
    body = {"model": "deepseek-ocr", "input": chat()["messages"], "stream": True}
    sequence = events(service.post(body, "/v1/responses"))
    kinds = [event["type"].removeprefix("response.") for event in sequence]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added",
        *["output_text.delta"] * 4,
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in sequence] == list(range(len(sequence)))
    assert "".join(event["delta"] for event in sequence if event["type"].endswith("delta")) == "Hello, world."
    final = sequence[-1]["response"]
    assert final["output"][0]["content"][0]["text"] == "Hello, world."
    assert final["usage"]["input_tokens"] == 15
    assert final["id"] == sequence[0]["response"]["id"]


def test_a_truncated_response_is_incomplete_and_says_why(make_service: MakeService) -> None:
    service = make_service()
    body = {"model": "deepseek-ocr", "input": chat()["messages"], "max_output_tokens": 2}
    answer = service.post(body, "/v1/responses").json
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert answer["output"][0]["status"] == "incomplete"
    assert "max_output_tokens" in answer["ocr"]["warning"]
    streamed = events(service.post({**body, "stream": True}, "/v1/responses"))
    assert streamed[-1]["type"] == "response.incomplete"


def test_a_truncated_chat_ends_with_length_and_names_the_setting_to_raise(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    answer = service.post(chat(max_tokens=2)).json
    assert answer["choices"][0]["finish_reason"] == "length"
    assert "raise max_tokens" in answer["ocr"]["warning"]
    assert "--max-new-tokens" in caplog.text


@pytest.mark.parametrize(
    ("reason", "detail", "chat_reason", "status", "incomplete"),
    [
        ("stop", "stop_string", "stop", "completed", None),
        ("stop", "loop", "stop", "completed", None),
        ("length", "context", "length", "incomplete", "max_output_tokens"),
        ("length", "deadline", "length", "incomplete", "deadline"),
        ("cancelled", "cancelled", "length", "incomplete", "cancelled"),
    ],
)
def test_every_end_has_its_reason_and_its_detail(
    make_service: MakeService, reason: str, detail: str, chat_reason: str, status: str, incomplete: str | None
) -> None:
    service = make_service(script=ending(reason, detail))
    answer = service.post(chat()).json
    assert answer["choices"][0]["message"]["content"] == "partial"
    assert (answer["choices"][0]["finish_reason"], answer["ocr"]["finish_detail"]) == (chat_reason, detail)
    response = service.post({"model": "deepseek-ocr", "input": chat()["messages"]}, "/v1/responses").json
    assert (response["status"], (response["incomplete_details"] or {}).get("reason")) == (status, incomplete)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("content", ["Hello?", [{"type": "text", "text": "<image> there?"}]])
def test_a_request_without_an_image_gets_a_readable_answer(service: Service, stream: bool, content: Any) -> None:
    body = {"model": "deepseek-ocr", "messages": [{"role": "user", "content": content}], "stream": stream}
    result = service.post(body)
    assert result.status_code == 200
    assert "Attach a picture or a PDF" in result.text
    assert '"no_image"' in result.text.replace(" ", "")
    reason = events(result)[-1] if stream else result.json
    assert reason["choices"][0]["finish_reason"] == "stop"
    assert service.source.loads == []  # no model is needed to say that


def test_models_are_listed_and_found(service: Service) -> None:
    listed = service.client.simulate_get("/v1/models").json
    ids = [model["id"] for model in listed["data"]]
    assert ids == MODELS
    assert service.client.simulate_get("/v1/models/tiny-ocr").json["id"] == "tiny-ocr"
    assert service.client.simulate_get("/v1/models/deepseek-ocr-q8").json["id"] == "deepseek-ocr-q8"
    assert service.client.simulate_get("/v1/models/nope").status_code == 404


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


def test_what_openai_clients_send_besides_is_accepted(service: Service) -> None:
    extra = {
        "n": 1, "user": "u", "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [],
        "response_format": {"type": "text"}, "metadata": {"a": "b"}, "seed": None, "store": False, "top_k": -1,
    }  # fmt: skip
    assert service.post(chat(**extra)).status_code == 200
    more = {"store": True, "truncation": "auto", "reasoning": {"effort": "low"}, "include": [], "metadata": None}
    assert service.post({"model": "tiny-ocr", "input": "x", **more}, "/v1/responses").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_engine_is_reported_and_does_not_disturb_the_next_request(
    make_service: MakeService, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(script=broken)
    result = service.post(chat(stream=stream))
    if stream:
        assert events(result)[-1]["error"]["code"] == "engine_error"
        failed = events(
            service.post({"model": "deepseek-ocr", "input": chat()["messages"], "stream": True}, "/v1/responses")
        )
        assert failed[-1]["type"] == "response.failed"
        assert failed[-1]["response"]["status"] == "failed"
        assert failed[-1]["sequence_number"] == len(failed) - 1
    else:
        assert (result.status_code, result.json["error"]["code"]) == (500, "engine_error")
    assert "secret" not in result.text
    assert "a secret of the engine" in caplog.text
    service.source.models["deepseek-ocr"].script = lambda request: ["fine"]
    assert service.post(chat()).json["choices"][0]["message"]["content"] == "fine"


def test_an_exception_nobody_expected_is_a_500_without_its_text(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.application.source, "entry", lambda model_id: 1 / 0)
    result = service.post(chat())
    assert (result.status_code, result.json["error"]["code"]) == (500, "internal_error")
    assert "division" not in result.text


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (QueueFull(64, 12.4), "queue_full"),
        (EngineClosed("died"), "engine_closed"),
    ],
)
def test_a_model_that_takes_no_request_is_a_503_with_retry_after(
    service: Service, problem: Exception, code: str
) -> None:
    service.post(chat())
    service.source.models["deepseek-ocr"].refuse = problem
    result = service.post(chat())
    assert (result.status_code, result.json["error"]["code"]) == (503, code)
    assert int(result.headers["retry-after"]) >= 1


def test_a_model_whose_engine_died_is_loaded_again_for_the_next_request(service: Service) -> None:
    service.post(chat())
    service.source.models["deepseek-ocr"].close()
    assert service.post(chat()).status_code == 200
    assert service.source.loads == ["deepseek-ocr", "deepseek-ocr"]


def test_ready_follows_the_engine_and_brings_a_dead_one_back(service: Service) -> None:
    service.application.preload("deepseek-ocr")
    service.source.models["deepseek-ocr"].close()
    answer = service.client.simulate_get("/ready")
    assert (answer.status_code, answer.json["models"]) == (503, [])
    for _ in range(2000):  # nobody sends a request meanwhile
        if service.client.simulate_get("/ready").status_code == 200:
            break
        time.sleep(0.01)
    assert service.source.loads == ["deepseek-ocr", "deepseek-ocr"]
    assert service.post(chat()).status_code == 200


def test_a_model_that_cannot_be_loaded_now_is_a_503_that_says_why(service: Service) -> None:
    service.source.problem = ModelUnavailable("run: ocr-onnx export deepseek-ocr")
    result = service.post(chat())
    assert (result.status_code, result.json["error"]["code"]) == (503, "model_unavailable")
    assert "ocr-onnx export deepseek-ocr" in result.json["error"]["message"]
    service.source.problem = None
    assert service.post(chat()).status_code == 200


def test_requests_beyond_the_queue_are_refused_at_once(make_service: MakeService) -> None:
    release = threading.Event()

    def wait(request: Request) -> Iterable[Step]:
        release.wait(30)
        return ["done"]

    service = make_service(script=wait, slots=1, max_queue=2)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(service.post(chat()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3000):
        if service.application.generator.present == 3:
            break
        threading.Event().wait(0.01)
    result = service.post(chat())
    release.set()
    for thread in threads:
        thread.join()
    assert (result.status_code, result.json["error"]["code"]) == (503, "queue_full")
    assert [one.status_code for one in results] == [200] * 3
    assert service.application.generator.present == 0


def test_body_flags_entry_and_config_reach_the_engine_in_their_order(make_service: MakeService) -> None:
    service = make_service(
        config_text="[inference]\ntop_p = 0.1\ntemperature = 0.1\nseed = 1\nmax_new_tokens = 11\n"
        "[models.entries.deepseek-ocr.defaults]\ntemperature = 0.2\nseed = 2\nmax_new_tokens = 12\n",
        inference_flags={"seed": 3, "max_new_tokens": 13},
    )
    service.post(chat(max_tokens=14, do_sample=True, stop="x", no_repeat_ngram_size=0, no_repeat_ngram_window=90))
    settings = service.source.models["deepseek-ocr"].requests[0].settings
    assert (settings.top_p, settings.temperature, settings.seed, settings.max_new_tokens) == (0.1, 0.2, 3, 14)
    assert (settings.samples, settings.stop) == (True, ("x",))
    assert (settings.no_repeat_ngram_size, settings.no_repeat_ngram_window) == (0, 90)


def test_images_arrive_decoded_and_in_order(service: Service) -> None:
    from PIL import Image

    parts = [
        image_part(data_url(Image.new("L", (7, 5)), "PNG")),
        image_part(data_url(Image.new("RGB", (3, 9)), "JPEG")),
    ]
    service.post({"model": "tiny-ocr", "messages": [{"role": "user", "content": parts}]})
    request = service.source.models["tiny-ocr"].requests[0]
    assert [image.size for image in request.images] == [(7, 5), (3, 9)]
    assert request.prompt == "<image>\n<image>\nFree OCR."  # of images alone, what this model was trained on


def test_the_log_has_one_line_for_each_request_and_no_text_of_the_user(
    make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(script=lambda request: ["SECRET", "ANSWER"])
    with caplog.at_level(logging.DEBUG):
        for body in (chat("SECRET PROMPT"), chat("SECRET PROMPT", stream=True), chat("SECRET", model="unknown 1")):
            service.post(body)
        service.post(chat("SECRET", url="data:SECRET"))
    lines = [record for record in caplog.records if record.name == "server.request"]
    assert [record.fields["outcome"] for record in lines] == ["ok", "ok", "rejected", "rejected"]  # type: ignore[attr-defined]
    first = lines[0].fields  # type: ignore[attr-defined]
    assert (first["model"], first["images"], first["prompt_tokens"], first["completion_tokens"]) == (
        "deepseek-ocr", "40x30", 15, 2,
    )  # fmt: skip
    assert {"id", "seconds", "vision", "prefill", "decode", "tokens_per_second"} <= set(first)
    assert "SECRET" not in caplog.text
    refused = lines[2].fields  # type: ignore[attr-defined]
    assert (refused["status"], refused["model"], refused["address"]) == (404, "unknown 1", "127.0.0.1")
    assert refused["reason"].startswith("model 'unknown 1' is not known")
    assert 'model="unknown 1"' in lines[2].getMessage()
    assert lines[3].fields["reason"].startswith("the image's data: URL")  # type: ignore[attr-defined]
    assert "status" not in first


def test_every_refused_request_leaves_a_line_and_others_do_on_debug(
    make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_service(api_keys=("key",)).client
    key = {"Authorization": "Bearer key"}
    with caplog.at_level(logging.DEBUG):
        client.simulate_post("/v1/chat/completions", json=chat())
        client.simulate_get("/nothing\nhere", headers=key)
        client.simulate_get("/v1/models/gpt-4", headers=key)
        client.simulate_get("/v1/models", headers=key)
        client.simulate_post("/v1/responses", body="{", headers={**key, "Content-Type": "application/json"})
    lines = [record for record in caplog.records if record.name == "server.request"]
    fields = [record.fields for record in lines]  # type: ignore[attr-defined]
    assert [(one.get("path", one.get("endpoint")), one["status"]) for one in fields] == [
        ("/v1/chat/completions", 401), ("/nothing\nhere", 404), ("/v1/models/gpt-4", 404), ("/v1/models", 200),
        ("/v1/responses", 400),
    ]  # fmt: skip
    assert [record.levelname for record in lines] == ["INFO", "INFO", "INFO", "DEBUG", "INFO"]
    assert [bool(one["reason"]) for one in fields] == [True, True, True, False, True]
    assert fields[2]["model"] == "gpt-4"
    assert {one["address"] for one in fields} == {"127.0.0.1"}
    assert all("\n" not in record.getMessage() for record in lines)


def test_metrics_count_requests_tokens_and_memory(service: Service) -> None:
    service.post(chat())
    service.post(chat(max_tokens=1))
    service.post({})
    text = service.client.simulate_get("/metrics").text
    for line in (
        'ocr_requests_total{model="deepseek-ocr",outcome="ok"} 1.0',
        'ocr_requests_total{model="deepseek-ocr",outcome="length"} 1.0',
        'ocr_requests_total{model="",outcome="rejected"} 1.0',
        'ocr_tokens_total{kind="completion",model="deepseek-ocr"} 5.0',
        'ocr_time_to_first_token_seconds_count{model="deepseek-ocr"} 2.0',
        'ocr_decode_tokens_per_second_count{model="deepseek-ocr"} 1.0',
        'ocr_stage_seconds_count{model="deepseek-ocr",stage="vision"} 2.0',
        "ocr_queue_depth 0.0",
        "ocr_loaded_models 1.0",
    ):
        assert line in text
    assert "ocr_memory_bytes" in text


def test_health_is_always_up_and_ready_follows_the_model(service: Service) -> None:
    for path in ("/health", "/v1/health", "/health/"):
        assert service.client.simulate_get(path).json == {"status": "ok"}
    assert service.client.simulate_get("/ready").status_code == 503
    service.application.preload("deepseek-ocr")
    assert service.client.simulate_get("/ready").json["status"] == "ready"
    service.application.generator.drain(0)
    assert service.client.simulate_get("/ready").json["status"] == "shutting_down"
    refused = service.post(chat())
    assert (refused.status_code, refused.json["error"]["code"]) == (503, "shutting_down")


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


def test_a_model_with_a_missing_file_is_listed_and_refused(make_service: MakeService) -> None:
    service = make_service(config_text="[models.entries.mine]\nsource = 'x/y'\ntokenizer = 'missing.json'\n")
    listed = service.client.simulate_get("/v1/models").json["data"]
    assert [(model["id"], model["loaded"]) for model in listed if model["id"] == "mine"] == [("mine", False)]
    refused = service.post(chat(model="mine"))
    assert refused.status_code == 404
    assert "missing.json" in refused.json["error"]["message"]


def test_refused_requests_leave_their_place(service: Service) -> None:
    for body in ({}, chat(model="nope"), chat(url="x"), chat(temperature=-1), chat("x", task="free")):
        assert service.post(body).status_code in (400, 404)
    assert service.application.generator.present == 0


def test_too_many_images_are_refused(make_service: MakeService) -> None:
    service = make_service(max_images=2)
    content = [image_part()] * 3
    result = service.post({"model": "deepseek-ocr", "messages": [{"role": "user", "content": content}]})
    assert (result.status_code, result.json["error"]["code"]) == (400, "too_many_images")
