"""Pages that a model reads in one answer: of a document or as images of a message, and where each one's text stands."""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image

from models.model_errors import InvalidInput
from runtime.documents import Document, Drawn
from runtime.requests import Request
from server.http.admission import Admission, Capacity
from server.http.joint_pages import JointPages
from server.http.schema import ReadingOptions
from tests.server.conftest import MakeService, Service, data_url, image_part
from tests.server.document_requests import ask, content, numbered

ANSWER = ["<|det|>title [0, 0, 999, 999]<|/det|>One", "<PA", "GE>\n", "<|det|>text [0, 0, 999, 500]<|/det|>Two"]
FIRST, SECOND = ANSWER[0], "\n" + ANSWER[3]
SIZES = [(200, 100), (100, 300)]


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(script=lambda request: ANSWER)


def pictures(sizes: list[tuple[int, int]] = SIZES) -> list[dict[str, Any]]:
    return [image_part(data_url(Image.new("RGB", size, "white"))) for size in sizes]


def chat_of(parts: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"model": "unlimited-ocr", "messages": [{"role": "user", "content": parts}], **more}


def check_places(extension: dict[str, Any], text: str) -> None:
    pages = extension["pages"]
    assert [(page["page"], page["width"], page["height"]) for page in pages] == [(1, 200, 100), (2, 100, 300)]
    assert [text[page["start"] : page["end"]] for page in pages] == [FIRST, SECOND]
    assert extension["boxes"] == [
        {"label": "title", "text": "One", "box": [0, 0, 200, 100], "page": 1, "kind": "title", "order": 1},
        {"label": "text", "text": "Two", "box": [0, 0, 100, 150], "page": 2, "kind": "text", "order": 1},
    ]
    assert [(block["kind"], block["page"], block["text"]) for block in extension["blocks"]] == [
        ("title", 1, "One"), ("text", 2, "Two"),
    ]  # fmt: skip


@pytest.mark.parametrize("asked", [{"task": "pages"}, {}], ids=["task", "words"])
def test_boxes_of_several_images_say_which_image_they_are_on(service: Service, asked: dict[str, Any]) -> None:
    words = [] if asked else [{"type": "text", "text": "Multi page parsing."}]
    answer = service.post(chat_of([*pictures(), *words], ocr={"boxes": True}, **asked)).json
    (request,) = service.source.models["unlimited-ocr"].requests
    assert [image.size for image in request.images] == SIZES
    assert request.settings.no_repeat_ngram_window == 1024
    check_places(answer["ocr"], content(answer))
    assert [page["completion_tokens"] for page in answer["ocr"]["pages"]] == [3, 1]


def test_responses_and_streams_say_the_same(service: Service) -> None:
    parts = [{"type": "input_image", "image_url": part["image_url"]["url"]} for part in pictures()]
    body = {"model": "unlimited-ocr", "task": "pages", "ocr": {"boxes": True}}
    response = service.post({**body, "input": [{"role": "user", "content": parts}]}, "/v1/responses").json
    check_places(response["ocr"], response["output"][0]["content"][0]["text"])
    streamed = service.post(chat_of(pictures(), stream=True, task="pages", ocr={"boxes": True})).text
    chunks = [json.loads(line[6:]) for line in streamed.split("\n") if line.startswith("data: {")]
    check_places(next(chunk["ocr"] for chunk in chunks if "ocr" in chunk), "".join(ANSWER))


@pytest.mark.parametrize("asked", [{"model": "deepseek-ocr", "task": "markdown"}, {"task": "markdown"}])
def test_boxes_that_nothing_tells_apart_are_refused_with_what_to_do(service: Service, asked: dict[str, Any]) -> None:
    refused = service.post({**chat_of(pictures(), ocr={"boxes": True}), **asked})
    assert refused.status_code == 400
    assert refused.json["error"]["param"] == "ocr.boxes"
    for words in ("2", "one at a time", "joint_tasks"):
        assert words in refused.json["error"]["message"]
    assert service.post({**chat_of(pictures()), **asked}).status_code == 200


def test_models_say_which_of_their_tasks_are_joint(service: Service) -> None:
    listed = {one["id"]: one["joint_tasks"] for one in service.client.simulate_get("/v1/models").json["data"]}
    assert listed["unlimited-ocr"] == ["pages"]
    assert listed["deepseek-ocr"] == []


def test_pages_that_the_answer_does_not_reach_are_said(make_service: MakeService) -> None:
    service = make_service(script=lambda request: [*ANSWER, ("length", "max_tokens")])
    found = service.post({**ask(numbered(4), ""), "model": "unlimited-ocr", "task": "pages"}).json
    pages = found["ocr"]["pages"]
    assert [page.get("finish_detail") for page in pages] == ["eos", "max_tokens", None, None]
    assert ["max_tokens" in page.get("error", "") for page in pages] == [False, False, True, True]
    assert all(page["start"] == page["end"] == len(content(found)) for page in pages[2:])
    warning = found["ocr"]["warning"]
    assert "page 2: the answer was cut off after 1 tokens" in warning
    assert "page 3, 4: the answer to all pages together ended before" in warning


def test_a_page_that_cannot_be_drawn_is_left_out_and_stands_in_its_place(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Document.draw

    def damaged(self: Document, index: int, *more: Any) -> Drawn:
        if index == 1:
            raise InvalidInput("page 2 is damaged")
        return draw(self, index, *more)

    monkeypatch.setattr(Document, "draw", damaged)
    service = make_service(script=lambda request: ["a<PAGE>b"])
    found = service.post({**ask(numbered(3), ""), "model": "unlimited-ocr", "task": "pages"}).json
    assert [page["page"] for page in found["ocr"]["pages"]] == [1, 2, 3]
    assert [page.get("error") for page in found["ocr"]["pages"]] == [None, "page 2 is damaged", None]
    (request,) = service.source.models["unlimited-ocr"].requests
    assert request.prompt.count("<image>") == len(request.images) == 2
    monkeypatch.setattr(Document, "draw", lambda self, index, *more: damaged(self, 1))
    refused = service.post({**ask(numbered(3), ""), "model": "unlimited-ocr", "task": "pages"})
    assert (refused.status_code, "damaged" in refused.text) == (400, True)


def test_more_marks_than_pages_are_text_of_the_last(make_service: MakeService) -> None:
    service = make_service(script=lambda request: ["a<PAGE>b<PAGE>c"])
    found = service.post({**ask(numbered(2), ""), "model": "unlimited-ocr", "task": "pages"}).json
    assert [content(found)[page["start"] : page["end"]] for page in found["ocr"]["pages"]] == ["a", "b<PAGE>c"]


def test_a_document_of_more_pixels_than_the_house_holds_is_drawn_page_by_page() -> None:
    """It once waited for its own pixels, and was told that those of others fill the memory."""

    class Pages:
        def size(self, index: int, stop: Any) -> tuple[int, int]:
            return 10, 10

        def draw(self, index: int, stop: Any) -> Drawn:
            assert admission.held("pixels") == 100
            return Drawn(Image.new("RGB", (10, 10)))

    admission = Admission(Capacity(pixels=150))
    requests: list[Request] = []

    class Model:
        def submit(self, request: Request) -> None:
            requests.append(request)
            assert [page.size for page in request.images] == [(10, 10)] * 5

    pages = JointPages(Pages(), range(5), ReadingOptions(), "", admission, lambda: False)  # type: ignore[arg-type]
    pages.begin(Model(), "<image>all", object())  # type: ignore[arg-type]
    assert admission.held("pixels") == 0
    assert requests[0].prompt.count("<image>") == 5
