"""The HTTP API inside one process: answers, errors, limits, keys, precedence."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.server.asking import ending, events
from tests.server.conftest import MODELS, MakeService, Service, chat, data_url, image_part


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


def test_what_openai_clients_send_besides_is_accepted(service: Service) -> None:
    extra = {
        "n": 1, "user": "u", "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [],
        "response_format": {"type": "text"}, "metadata": {"a": "b"}, "seed": None, "store": False, "top_k": -1,
    }  # fmt: skip
    assert service.post(chat(**extra)).status_code == 200
    more = {"store": True, "truncation": "auto", "reasoning": {"effort": "low"}, "include": [], "metadata": None}
    assert service.post({"model": "tiny-ocr", "input": "x", **more}, "/v1/responses").status_code == 200


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
    service.application.in_flight.drain(0)
    assert service.client.simulate_get("/ready").json["status"] == "shutting_down"
    refused = service.post(chat())
    assert (refused.status_code, refused.json["error"]["code"]) == (503, "shutting_down")
