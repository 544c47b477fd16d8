"""Documents in requests that cannot be read, in whole or in part: refused or named with a reason."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import pytest
from PIL import Image

from runtime.requests import Request
from server.http.documents import PAGE_BREAK
from tests.pdfs import encrypted, text_pdf, without_pages
from tests.server.conftest import MakeService, Service, chat, image_part
from tests.server.document_requests import ask, content, events, file_part, number_of, numbered, page_text
from tests.server.fake import Step


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(script=page_text, slots=2)


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
