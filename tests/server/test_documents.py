"""PDFs in requests: read page by page through the engine's slots and joined in order."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
from PIL import Image

from runtime.requests import Request
from server.http.documents import PAGE_BREAK
from tests.pdfs import encrypted
from tests.server.conftest import MakeService, Service
from tests.server.document_requests import ask, content, events, file_part, file_url, number_of, numbered, page_text
from tests.server.fake import Step


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
