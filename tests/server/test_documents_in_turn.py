"""When pages of documents are drawn and read: as slots, the queue, deadlines and other callers allow."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest
from PIL import Image

from models.settings import InferenceSettings
from runtime.library.source import ModelKey
from runtime.requests import Request
from runtime.runtime_errors import QueueFull
from server.http import document_reader
from server.http.documents import PAGE_BREAK
from tests.clock import Clock
from tests.pdfs import text_pdf
from tests.server.conftest import MakeService, chat
from tests.server.document_requests import ask, content, number_of, numbered, page_text
from tests.server.fake import Step
from tests.waiting import until


def test_only_as_many_pages_are_drawn_as_are_read_at_once_and_one_to_follow(make_service: MakeService) -> None:
    release = threading.Event()

    def wait(request: Request) -> Iterable[Step]:
        release.wait(30)
        return page_text(request)

    service = make_service(script=wait, slots=2)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(service.post(ask(numbered(9)))))
    thread.start()
    until(lambda: "deepseek-ocr" in service.source.models)
    model = service.source.models["deepseek-ocr"]
    until(lambda: len(model.requests) == 3)
    time.sleep(0.5)
    begun = len(model.requests)
    release.set()
    thread.join(30)
    assert begun == 3
    assert len(model.requests) == 9
    assert content(answers[0].json).endswith("Page 9 ends.")


def test_the_deadline_is_the_documents_and_names_the_pages_that_were_not_read(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("server.http.documents.time", clock)

    def script(request: Request) -> Iterable[Step]:
        yield f"Page {number_of(request)}"
        if number_of(request) == 3:
            clock.ahead = 1000.0  # the time is over
        yield "."

    service = make_service(script=script, slots=1)
    answer = service.post(ask(numbered(30), deadline_s=600)).json
    assert (answer["choices"][0]["finish_reason"], answer["ocr"]["finish_detail"]) == ("length", "deadline")
    read = [page["page"] for page in answer["ocr"]["pages"]]
    assert read + answer["ocr"]["pages_not_read"] == list(range(1, 31))
    assert read[:3] == [1, 2, 3]
    assert len(read) <= 4  # the one that follows may have begun
    assert "deadline" in answer["ocr"]["warning"]
    left = [request.settings.deadline_s for request in service.source.models["deepseek-ocr"].requests]
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0] < 600


def test_a_full_queue_makes_a_later_page_wait(make_service: MakeService) -> None:
    refused: list[int] = []

    def fill_the_queue(request: Request) -> Iterable[Step]:
        if number_of(request) == 1:
            until(lambda: refused)
            model.refuse = None
        yield from page_text(request)

    service = make_service(script=fill_the_queue, slots=1)
    service.application.preload("deepseek-ocr")
    model = service.source.models["deepseek-ocr"]
    accept = model.submit

    def submit(request: Request) -> Any:
        try:
            generation = accept(request)
        except QueueFull:
            refused.append(number_of(request))
            raise
        if number_of(request) == 1:
            model.refuse = QueueFull(64, 10)
        return generation

    model.submit = submit  # type: ignore[method-assign]
    assert content(service.post(ask(numbered(3))).json) == PAGE_BREAK.join(f"Page {n} ends." for n in (1, 2, 3))
    assert refused


def test_a_shutdown_ends_a_document_with_the_text_so_far(make_service: MakeService) -> None:
    begun = threading.Event()

    def endless(request: Request) -> Iterable[Step]:
        yield f"Page {number_of(request)}"
        begun.set()
        for _ in range(3000):
            yield 0.01

    service = make_service(script=endless, slots=2)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(service.post(ask(numbered(9))).json))
    thread.start()
    assert begun.wait(30)
    service.application.in_flight.drain(0)
    thread.join(30)
    assert answers[0]["ocr"]["finish_detail"] == "cancelled"
    assert content(answers[0]).startswith("Page 1")
    assert answers[0]["ocr"]["pages_not_read"][-1] == 9


def test_documents_leave_room_for_a_single_image(make_service: MakeService) -> None:
    """A page that would wait behind others is not begun: each of the documents has one page waiting at most."""
    begun = threading.Semaphore(0)

    def read(request: Request) -> Iterable[Step]:
        begun.release()
        yield 0.02
        yield "text"

    service = make_service(script=read, slots=4, max_queue=20)
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(service.post(ask(numbered(6))).status_code)) for _ in range(10)
    ]
    for thread in threads:
        thread.start()
    assert begun.acquire(timeout=30)
    assert service.post(chat()).status_code == 200
    for thread in threads:
        thread.join(60)
    assert answers == [200] * 10
    assert service.source.models["deepseek-ocr"].deepest <= 11


def test_a_page_is_drawn_at_twice_what_the_model_of_the_request_sees(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 points square are 2,000 pixels; each request's model, prompt and settings count."""

    def sees(key: ModelKey, prompt: str, settings: InferenceSettings) -> int | None:
        asked.append((key.entry.id, prompt))
        return settings.family["max_tiles"] * 250_000 if key.entry.id == "deepseek-ocr" else None

    asked: list[tuple[str, str]] = []
    service = make_service(script=lambda request: ["{} x {}".format(*request.images[0].size)])
    monkeypatch.setattr(service.source, "seen_pixels", sees)
    square, huge = text_pdf(["words"], (1000, 1000)), text_pdf(["words"], (3000, 3000))
    assert content(service.post(ask(square, max_tiles=5)).json) == "1580 x 1580"
    assert content(service.post(ask(square, max_tiles=9)).json) == "2000 x 2000"
    assert content(service.post(ask(square, max_tiles=2)).json) == "1417 x 1417"  # a sheet of A4 has as many
    assert content(service.post(ask(huge, model="unlimited-ocr")).json) == "3461 x 3461"  # nobody knows: 12 megapixels
    for dpi, size in ((72, "1000 x 1000"), (144, "2000 x 2000"), (288, "4000 x 4000")):
        assert content(service.post(ask(square, max_tiles=2, ocr={"dpi": dpi})).json) == size
    for dpi in (17, 1201):
        refused = service.post(ask(square, ocr={"dpi": dpi}))
        assert refused.status_code == 400
        assert refused.json["error"]["param"] == "ocr.dpi"
    picture = io.BytesIO()
    Image.new("RGB", (3000, 2000)).save(picture, "PNG")
    answer = service.post(ask(picture.getvalue(), max_tiles=6)).json
    assert content(answer) == "2121 x 1414"
    page = answer["ocr"]["pages"][0]
    assert (page["width"], page["height"]) == (2121, 1414)
    assert [model for model, _ in asked] == ["deepseek-ocr"] * 3 + ["unlimited-ocr"] + ["deepseek-ocr"] * 4
    assert {prompt for _, prompt in asked} == {"<image>\nFree OCR."}


def test_a_page_that_waits_for_the_queue_is_drawn_once(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.http.documents.RETRY_SECONDS", 0.02)
    drawn: list[int] = []
    refused: list[int] = []
    opened = document_reader.open_document

    def watched(*arguments: Any, **options: Any) -> Any:
        document = opened(*arguments, **options)
        draw = document.draw
        document.draw = lambda index, stop: drawn.append(index) or draw(index, stop)  # type: ignore[method-assign,func-returns-value]
        return document

    monkeypatch.setattr(document_reader, "open_document", watched)

    def script(request: Request) -> Iterable[Step]:
        if number_of(request) == 1:
            until(lambda: len(refused) > 2)
            model.refuse = None
        yield from page_text(request)

    service = make_service(script=script, slots=2)
    service.application.preload("deepseek-ocr")
    model = service.source.models["deepseek-ocr"]
    accept = model.submit

    def submit(request: Request) -> Any:
        try:
            generation = accept(request)
        except QueueFull:
            refused.append(number_of(request))
            raise
        if number_of(request) == 1:
            model.refuse = QueueFull(64, 10)
        return generation

    model.submit = submit  # type: ignore[method-assign]
    assert content(service.post(ask(numbered(3))).json) == PAGE_BREAK.join(f"Page {n} ends." for n in (1, 2, 3))
    assert drawn == [0, 1, 2]


@pytest.mark.parametrize("content", ["picture", "document"])
def test_turns_are_shared_out_by_key_and_without_keys_by_address(make_service: MakeService, content: str) -> None:
    """What the engine is told of whose request it is; keys that nobody has given out make no client."""
    body = chat() if content == "picture" else ask(numbered(1))
    for keys, same in ((("one", "two"), False), ((), True)):
        service = make_service(api_keys=keys)
        for key in ("one", "two", "one"):
            answer = service.client.simulate_post(
                "/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}
            )
            assert answer.status_code == 200
        first, second, third = (request.client for request in service.source.models["deepseek-ocr"].requests)
        assert first == third
        assert (first == second) is same
        assert first
        assert "one" not in first
