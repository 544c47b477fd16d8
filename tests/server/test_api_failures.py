"""The API where an engine fails, a model cannot be loaded or the queue is full."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest

from runtime.requests import Request
from runtime.runtime_errors import EngineClosed, ModelUnavailable, QueueFull
from tests.server.asking import broken, events
from tests.server.conftest import MakeService, Service, chat
from tests.server.fake import Step


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
        if service.application.in_flight.present == 3:
            break
        threading.Event().wait(0.01)
    result = service.post(chat())
    release.set()
    for thread in threads:
        thread.join()
    assert (result.status_code, result.json["error"]["code"]) == (503, "queue_full")
    assert [one.status_code for one in results] == [200] * 3
    assert service.application.in_flight.present == 0


def test_a_model_with_a_missing_file_is_listed_and_refused(make_service: MakeService) -> None:
    service = make_service(config_text="[models.entries.mine]\nsource = 'x/y'\ntokenizer = 'missing.json'\n")
    listed = service.client.simulate_get("/v1/models").json["data"]
    assert [(model["id"], model["loaded"]) for model in listed if model["id"] == "mine"] == [("mine", False)]
    refused = service.post(chat(model="mine"))
    assert refused.status_code == 404
    assert "missing.json" in refused.json["error"]["message"]
