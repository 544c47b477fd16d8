"""PDFs in requests: read page by page through the engine's slots, joined in order, refused with a reason."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest
from PIL import Image

from models.settings import InferenceSettings
from runtime.errors import QueueFull
from runtime.library.source import ModelKey
from runtime.requests import Request
from server.http import documents
from server.http.documents import PAGE_BREAK
from tests.pdfs import encrypted, scanned_pdf, text_pdf, without_pages
from tests.server.conftest import MakeService, Service, chat, image_part
from tests.server.fake import Step
from tests.waiting import until


def file_url(data: bytes, mime: str = "application/pdf") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def file_part(data: bytes) -> dict[str, Any]:
    return {"type": "file", "file": {"file_data": file_url(data), "filename": "paper.pdf"}}


def ask(data: bytes, text: str = "Free OCR.", **more: Any) -> dict[str, Any]:
    content = [file_part(data), {"type": "text", "text": text}]
    return {"model": "deepseek-ocr", "messages": [{"role": "user", "content": content}], **more}


def numbered(count: int) -> bytes:
    """A document whose page n is 100 + n pixels wide, so that a scripted model can tell them apart."""
    return scanned_pdf([Image.new("RGB", (100 + number, 50), "white") for number in range(1, count + 1)])


def number_of(request: Request) -> int:
    return request.images[0].width - 100


def page_text(request: Request) -> Iterable[Step]:
    return [f"Page {number_of(request)}", " ends."]


def events(result: Any) -> list[dict[str, Any]]:
    lines = [line[6:] for line in result.text.split("\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def content(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(script=page_text, slots=2)


def test_a_document_is_read_page_by_page_and_joined_in_order(service: Service) -> None:
    answer = service.post(ask(numbered(5))).json
    assert content(answer) == PAGE_BREAK.join(f"Page {number} ends." for number in range(1, 6))
    assert answer["usage"]["prompt_tokens"] == 5 * 15
    assert answer["usage"]["completion_tokens"] == 5 * 2
    assert answer["choices"][0]["finish_reason"] == "stop"
    pages = answer["ocr"]["pages"]
    assert [page["page"] for page in pages] == [1, 2, 3, 4, 5]
    assert [(page["width"], page["height"]) for page in pages] == [(100 + n, 50) for n in range(1, 6)]
    assert [content(answer)[page["start"] : page["end"]] for page in pages] == [
        f"Page {number} ends." for number in range(1, 6)
    ]
    requests = service.source.models["deepseek-ocr"].requests
    assert {request.prompt for request in requests} == {"<image>\nFree OCR."}
    assert all(len(request.images) == 1 for request in requests)


def test_streamed_pages_come_in_order_even_when_later_ones_are_ready_first(make_service: MakeService) -> None:
    def slow_first(request: Request) -> Iterable[Step]:
        yield "Page "
        yield 0.4 / number_of(request)
        yield f"{number_of(request)}"

    service = make_service(script=slow_first, slots=4)
    chunks = events(service.post(ask(numbered(4), stream=True)))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == PAGE_BREAK.join(f"Page {number}" for number in range(1, 5))
    assert [page["finish_detail"] for page in chunks[-1]["ocr"]["pages"]] == ["eos"] * 4
    body = {"model": "deepseek-ocr", "input": ask(numbered(4))["messages"], "stream": True}
    final = events(service.post(body, "/v1/responses"))[-1]
    assert final["type"] == "response.completed"
    assert final["response"]["output"][0]["content"][0]["text"] == text
    assert len(final["response"]["ocr"]["pages"]) == 4


def test_both_endpoints_take_both_forms_of_a_file(service: Service) -> None:
    flat = {"type": "input_file", "file_data": file_url(numbered(1)), "filename": "a.pdf"}
    for part in (flat, file_part(numbered(1))):
        messages = [{"role": "user", "content": [part]}]
        answer = service.post({"model": "tiny-ocr", "messages": messages}).json
        assert content(answer) == "Page 1 ends."
        response = service.post({"model": "tiny-ocr", "input": messages}, "/v1/responses").json
        assert response["output"][0]["content"][0]["text"] == "Page 1 ends."
    assert {request.prompt for request in service.source.models["tiny-ocr"].requests} == {"<image>\nFree OCR."}


def test_pages_are_chosen_by_number(service: Service) -> None:
    answer = service.post(ask(numbered(9), ocr={"pages": "8-,2, 4-5"})).json
    assert [page["page"] for page in answer["ocr"]["pages"]] == [2, 4, 5, 8, 9]
    assert content(answer).startswith("Page 2 ends.")


def test_an_image_in_a_file_is_a_document_and_every_frame_of_a_tiff_a_page(service: Service) -> None:
    frames = [Image.new("RGB", (100 + number, 40), "white") for number in (1, 2, 3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    assert len(service.post(ask(buffer.getvalue())).json["ocr"]["pages"]) == 3
    buffer = io.BytesIO()
    frames[1].save(buffer, "PNG")
    assert content(service.post(ask(buffer.getvalue())).json) == "Page 2 ends."


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


def broken_off(data: bytes) -> bytes:
    return data[:150]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encrypted(text_pdf(["secret"]), "word"), "encrypted"),
        (broken_off(text_pdf(["text"] * 9)), "damaged or cut off"),
        (without_pages(), "no pages"),
        (b"%PDF-1.7\nnonsense", "damaged"),
        (b"plain text", "cannot be read"),
        (b"", "empty"),
    ],
)
def test_documents_that_cannot_be_read_are_explained(service: Service, data: bytes, words: str) -> None:
    result = service.post(ask(data))
    error = result.json["error"]
    assert (result.status_code, error["param"], error["code"]) == (400, "file_data", "invalid_file")
    assert words in error["message"]
    assert service.application.in_flight.present == 0
    assert service.source.loads == []  # no model is loaded to say that


def with_part(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "deepseek-ocr", "messages": [{"role": "user", "content": list(parts)}], **more}


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        (with_part({"type": "file", "file": {"file_data": "/etc/passwd"}}), 400, "file_data", "data: URL"),
        (with_part({"type": "file", "file": {"file_data": "data:application/pdf,x"}}), 400, "file_data", "base64"),
        (with_part({"type": "file", "file": {"file_data": "data:;base64,A"}}), 400, "file_data", "valid base64"),
        (with_part({"type": "file", "file": {"file_id": "file-1"}}), 400, None, "file_id"),
        (with_part({"type": "input_file", "file_url": "https://a.example/a.pdf"}), 400, None, "file_url"),
        (with_part(file_part(numbered(1)), image_part()), 400, "messages", "1 files and 1 images"),
        (with_part(file_part(numbered(1)), file_part(numbered(1))), 400, "messages", "read alone"),
        (ask(numbered(3), ocr={"pages": "2-4"}), 400, "ocr.pages", "there are 3 pages"),
        (ask(numbered(3), ocr={"pages": "x"}), 400, "ocr.pages", "1-5,9"),
        (ask(numbered(3), ocr={"pages": "1," * 600}), 400, "ocr.pages", "at most"),
        (ask(numbered(6)), 400, "ocr.pages", '"1-5"'),
        (chat(ocr={"pages": "1"}), 400, "ocr.pages", "there is none"),
        (with_part(file_part(b"x" * ((1 << 20) + 9))), 413, "file_data", "1 MiB"),
    ],
)
def test_mistakes_with_documents_are_explained(
    make_service: MakeService, body: Any, status: int, param: str | None, words: str
) -> None:
    service = make_service(max_pages=5, max_image_mb=1)
    result = service.post(body)
    error = result.json["error"]
    assert (result.status_code, error["param"]) == (status, param), error
    assert words in error["message"]
    assert service.application.in_flight.present == 0


@pytest.mark.parametrize("failing", [{1}, {2, 3}, {4}])
def test_a_page_on_which_the_model_fails_does_not_stop_the_others(
    make_service: MakeService, failing: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    def sometimes(request: Request) -> Iterable[Step]:
        if number_of(request) in failing:
            raise RuntimeError("a secret of the engine")
        return page_text(request)

    answer = make_service(script=sometimes, slots=2).post(ask(numbered(4))).json
    assert content(answer) == PAGE_BREAK.join(f"Page {n} ends." for n in range(1, 5) if n not in failing)
    assert {page["page"] for page in answer["ocr"]["pages"] if "error" in page} == failing
    assert "failed" in answer["ocr"]["warning"]
    assert "secret" not in json.dumps(answer)
    assert "a secret of the engine" in caplog.text


def test_a_document_of_which_every_page_fails_is_an_error(make_service: MakeService) -> None:
    def fail(request: Request) -> Iterable[Step]:
        raise RuntimeError("broken")

    service = make_service(script=fail)
    result = service.post(ask(numbered(3)))
    assert (result.status_code, result.json["error"]["code"]) == (500, "engine_error")
    assert events(service.post(ask(numbered(3), stream=True)))[-1]["error"]["code"] == "engine_error"
    assert service.application.in_flight.present == 0


def test_a_page_that_cannot_be_drawn_is_named_and_the_others_are_read(make_service: MakeService) -> None:
    frames = [Image.new("1", size) for size in [(4000, 4000), (102, 40), (103, 40)]]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    service = make_service(script=page_text, max_image_megapixels=1)
    answer = service.post(ask(buffer.getvalue())).json
    assert content(answer) == PAGE_BREAK.join(["Page 2 ends.", "Page 3 ends."])
    assert "4000 x 4000 pixels" in answer["ocr"]["pages"][0]["error"]
    assert (answer["ocr"]["pages"][0]["start"], answer["ocr"]["pages"][0]["end"]) == (0, 0)
    alone = service.post(ask(buffer.getvalue(), ocr={"pages": "1"}))
    assert alone.status_code == 400
    assert "4000 x 4000 pixels" in alone.json["error"]["message"]


def test_an_encrypted_document_is_read_with_its_password(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    data = encrypted(numbered(2), "open sesame")
    assert content(service.post(ask(data, ocr={"password": "open sesame"})).json) == PAGE_BREAK.join(
        ["Page 1 ends.", "Page 2 ends."]
    )
    wrong = service.post(ask(data, ocr={"password": "open barley"}))
    assert (wrong.status_code, wrong.json["error"]["code"]) == (400, "invalid_file")
    assert "the password that was given is not the one that opens it" in wrong.json["error"]["message"]
    assert "ocr.password" in service.post(ask(data)).json["error"]["message"]
    assert service.post(ask(data, ocr={"password": 7})).status_code == 400
    assert "sesame" not in caplog.text


def test_every_page_has_the_whole_budget_and_the_warning_names_those_cut_off(service: Service) -> None:
    answer = service.post(ask(numbered(3), max_tokens=1)).json
    assert content(answer) == PAGE_BREAK.join(["Page 1", "Page 2", "Page 3"])
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["ocr"]["finish_detail"] == "max_tokens"
    assert answer["ocr"]["warning"] == (
        "page 1, 2, 3: the answer was cut off after 1 tokens; raise max_tokens (or --max-new-tokens)"
    )


def test_the_deadline_is_the_documents_and_names_the_pages_that_were_not_read(make_service: MakeService) -> None:
    def slow(request: Request) -> Iterable[Step]:
        yield f"Page {number_of(request)}"
        yield 0.3
        yield "."

    service = make_service(script=slow, slots=1)
    service.post(ask(numbered(1)))  # the model is loaded and the worker started
    answer = service.post(ask(numbered(30), deadline_s=0.8)).json
    assert (answer["choices"][0]["finish_reason"], answer["ocr"]["finish_detail"]) == ("length", "deadline")
    read = [page["page"] for page in answer["ocr"]["pages"]]
    assert read + answer["ocr"]["pages_not_read"] == list(range(1, 31))
    assert read
    assert "deadline" in answer["ocr"]["warning"]
    left = [request.settings.deadline_s for request in service.source.models["deepseek-ocr"].requests[1:]]
    assert left == sorted(left, reverse=True)
    assert left[-1] < 0.8


def test_a_full_queue_makes_a_later_page_wait(make_service: MakeService) -> None:
    refused: list[int] = []

    def fill_the_queue(request: Request) -> Iterable[Step]:
        if number_of(request) == 1:
            yield 0.5  # the other two are refused meanwhile
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


def test_boxes_of_a_document_stand_on_their_pages(make_service: MakeService) -> None:
    def place(request: Request) -> Iterable[Step]:
        return [f"<|ref|>title<|/ref|><|det|>[[0, 0, 999, 999]]<|/det|>\nPage {number_of(request)}"]

    answer = make_service(script=place).post(ask(numbered(2), ocr={"boxes": True})).json
    assert answer["ocr"]["boxes"] == [
        {"label": "title", "text": "Page 1", "box": [0, 0, 101, 50], "page": 1},
        {"label": "title", "text": "Page 2", "box": [0, 0, 102, 50], "page": 2},
    ]


def test_the_log_and_the_metrics_count_pages(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        service.post(ask(numbered(3)))
    lines = [record.fields for record in caplog.records if record.name == "server.request"]  # type: ignore[attr-defined]
    assert (lines[0]["pages"], lines[0]["images"], lines[0]["completion_tokens"]) == (3, None, 6)
    assert "paper.pdf" not in caplog.text
    assert 'ocr_pages_total{finish="eos",model="deepseek-ocr"} 3.0' in service.client.simulate_get("/metrics").text


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
    opened = documents.open_document

    def watched(*arguments: Any, **options: Any) -> Any:
        document = opened(*arguments, **options)
        draw = document.draw
        document.draw = lambda index, stop: drawn.append(index) or draw(index, stop)  # type: ignore[method-assign,func-returns-value]
        return document

    monkeypatch.setattr(documents, "open_document", watched)

    def script(request: Request) -> Iterable[Step]:
        if number_of(request) == 1:
            yield 0.4
            model.refuse = None
        yield from page_text(request)

    service = make_service(script=script, slots=2)
    service.application.preload("deepseek-ocr")
    model = service.source.models["deepseek-ocr"]
    accept = model.submit

    def submit(request: Request) -> Any:
        generation = accept(request)
        if number_of(request) == 1:
            model.refuse = QueueFull(64, 10)
        return generation

    model.submit = submit  # type: ignore[method-assign]
    assert content(service.post(ask(numbered(3))).json) == PAGE_BREAK.join(f"Page {n} ends." for n in (1, 2, 3))
    assert drawn == [0, 1, 2]


def test_a_joint_task_reads_all_pages_in_one_generation_and_parts_the_answer(make_service: MakeService) -> None:
    """Unlimited-OCR's pages: one request with a slot for each, ``<PAGE>`` in its answer."""
    answer = [
        "<|det|>title [0, 0, 999, 999]<|/det|>One",
        "<PAGE>",
        "<|det|>text [0, 0, 999, 500]<|/det|>Two<PAGE>",
    ]
    service = make_service(script=lambda request: answer, slots=2)
    asked = {"model": "unlimited-ocr", "task": "pages", "ocr": {"boxes": True, "pages": "2-4"}}
    found = service.post({**ask(numbered(5), ""), **asked}).json
    (request,) = service.source.models["unlimited-ocr"].requests
    assert request.prompt == "<image>\n<image>\n<image>Multi page parsing."
    assert [image.width for image in request.images] == [102, 103, 104]
    assert request.settings.no_repeat_ngram_size == 35
    assert request.settings.no_repeat_ngram_window == 1024
    pages = found["ocr"]["pages"]
    assert [(page["page"], page["width"]) for page in pages] == [(2, 102), (3, 103), (4, 104)]
    assert [content(found)[page["start"] : page["end"]] for page in pages] == [
        answer[0], answer[2].removesuffix("<PAGE>"), "",
    ]  # fmt: skip
    assert found["ocr"]["boxes"] == [
        {"label": "title", "text": "One", "box": [0, 0, 102, 50], "page": 2, "kind": "title", "order": 1},
        {"label": "text", "text": "Two", "box": [0, 0, 103, 25], "page": 3, "kind": "text", "order": 1},
    ]
    service.post({**ask(numbered(2), ""), "model": "unlimited-ocr"})
    requests = service.source.models["unlimited-ocr"].requests[1:]
    assert [request.prompt for request in requests] == ["<image>document parsing."] * 2
    assert {request.settings.no_repeat_ngram_window for request in requests} == {128}


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
