"""What operators allow at most: above it a request is refused with both numbers, or its answer is cut with a note."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import MakeService, Service, chat


def settings_of(service: Service) -> Any:
    return service.source.models["deepseek-ocr"].requests[-1].settings


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"deadline_s": 61}, "deadline_s", ("61", "60", "--max-deadline")),
        ({"max_tiles": 7}, "max_tiles", ("7", "4", "--max-tiles-limit")),
        ({"max_tokens": 10**30}, "max_tokens", (str(10**30), "10,000,000")),
        ({"deadline_s": 1e308}, "deadline_s", ("e+308", "31,536,000")),
        ({"max_tiles": 10**30}, "max_tiles", ("max_tiles", "64")),
    ],
)
def test_a_request_above_a_ceiling_is_refused_with_both_numbers(
    make_service: MakeService, body: dict[str, Any], param: str, words: tuple[str, ...]
) -> None:
    service = make_service(max_deadline=60.0, max_tiles=4)
    result = service.post(chat(**body))
    error = result.json["error"]
    assert result.status_code == 400
    assert error["param"] == param
    assert all(word in error["message"] for word in words), error["message"]
    assert service.application.admission.held("places") == service.application.admission.held("tokens") == 0


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_longer_answer_is_cut_to_the_ceiling_with_a_note(make_service: MakeService, name: str) -> None:
    service = make_service(script=lambda request: ["a "] * 50, max_new_tokens_limit=20)
    answer = service.post(chat(**{name: 9000})).json
    assert answer["usage"]["completion_tokens"] == 20
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["ocr"]["note"] == "the server gives at most 20 tokens to an answer; 9000 were asked for"
    assert "note" not in service.post(chat(**{name: 20})).json["ocr"]
    assert "note" not in service.post(chat()).json["ocr"]  # nobody asked for the default
    assert settings_of(service).max_new_tokens == 20


def test_ceilings_hold_for_what_nobody_sets_too(make_service: MakeService) -> None:
    service = make_service(max_deadline=60.0, max_tiles=4)
    assert service.post(chat()).status_code == 200
    assert settings_of(service).deadline_s is not None
    assert settings_of(service).deadline_s <= 60
    assert settings_of(service).value("max_tiles") == 4  # of the published model's 9
    service = make_service(max_tiles=12)
    service.post(chat())
    assert settings_of(service).value("max_tiles") is None
    assert settings_of(service).deadline_s is None


def test_below_the_ceilings_a_request_gets_what_it_asks_for(make_service: MakeService) -> None:
    service = make_service(max_deadline=60.0, max_tiles=4, max_new_tokens_limit=100)
    assert service.post(chat(deadline_s=60, max_tiles=2, max_tokens=99)).status_code == 200
    settings = settings_of(service)
    assert (settings.max_new_tokens, settings.value("max_tiles")) == (99, 2)


def test_many_tokens_that_are_asked_for_leave_places_for_those_who_ask_for_few(make_service: MakeService) -> None:
    service = make_service(slots=1, max_queue=3)
    house = service.application.admission
    with house.take("tokens", house.capacity.tokens - 1000):
        refused = service.post(chat(max_tokens=1001))
        assert (refused.status_code, refused.json["error"]["code"]) == (503, "queue_full")
        assert service.post(chat(max_tokens=900)).status_code == 200
    assert house.held("tokens") == 0
