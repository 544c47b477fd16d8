"""Tasks instead of prompts, raw text and boxes, in both APIs."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from typing import Any

import pytest
from PIL import Image

from models.config import load_config
from models.model_errors import ConfigError
from runtime.requests import Request
from tests.server.conftest import MakeService, Service, chat, data_url, image_part
from tests.server.fake import Step

MARKDOWN = "<image>\n<|grounding|>Convert the document to markdown."
PLACED = "<|ref|>title<|/ref|><|det|>[[0, 0, 500, 999]]<|/det|>\n# Report"


def image_only(model: str = "deepseek-ocr", images: int = 1, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": [image_part()] * images}], **more}


def prompt_of(service: Service, body: dict[str, Any]) -> str:
    result = service.post(body)
    assert result.status_code == 200, result.text
    response = service.post({**body, "input": body["messages"]}, "/v1/responses")
    assert response.status_code == 200, response.text
    prompts = [request.prompt for request in service.source.models[body["model"]].requests[-2:]]
    assert prompts[0] == prompts[1]
    return prompts[0]


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        (image_only(), MARKDOWN),
        (image_only(images=2), "<image>\n" + MARKDOWN),
        (image_only(task="free"), "<image>\nFree OCR."),
        (image_only(ocr={"task": "figure"}), "<image>\nParse the figure."),
        (image_only(task="ocr", ocr={"task": "ocr"}), "<image>\n<|grounding|>OCR this image."),
        (chat("the total", task="locate"), "<image>\nLocate <|ref|>the total<|/ref|> in the image."),
        (chat(" \n"), MARKDOWN),
        (chat("My own words"), "<image>\nMy own words"),
        (chat("My own words", "tiny-ocr"), "<image>\nFree OCR."),
        (chat(" Free OCR. ", "tiny-ocr", task=None), "<image>\nFree OCR."),
        (chat("My own words", "paddleocr-vl"), "<image>OCR:"),
        (chat("Table Recognition:", "paddleocr-vl"), "<image>\nTable Recognition:"),
        (chat("Spotting:", "paddleocr-vl"), "<image>\nSpotting:"),
        (image_only("tiny-ocr"), "<image>\nFree OCR."),
        (image_only("tiny-ocr", task="markdown"), "<image>\n<|grounding|>Convert the document to markdown."),
        (image_only("paddleocr-vl"), "<image>OCR:"),
        (image_only("paddleocr-vl", task="table"), "<image>Table Recognition:"),
    ],
)
def test_images_alone_and_tasks_get_their_prompts(service: Service, body: dict[str, Any], prompt: str) -> None:
    assert prompt_of(service, body) == prompt


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (image_only(task="nope"), "task", "its tasks are markdown, ocr, free, figure, describe, locate"),
        (image_only("paddleocr-vl", task="markdown"), "task", "its tasks are ocr, table, formula, chart"),
        (image_only("tiny-ocr", task="figure"), "task", "its tasks are markdown, ocr, free, locate"),
        (image_only("tiny-ocr-q8", task="describe"), "task", "its tasks are markdown, ocr, free, locate"),
        ({"model": "deepseek-ocr", "messages": [{"role": "user", "content": "x"}], "task": "nope"}, "task", "unknown"),
        (image_only(task="ocr", ocr={"task": "free"}), "task", "disagree"),
        (chat("Free OCR.", task="ocr"), "task", "takes no text"),
        (image_only(task="locate"), "task", "needs a text"),
        (image_only(task=3), "task", "string"),
        (image_only(ocr={"box": True}), "ocr.box", "not permitted"),
        (image_only(ocr={"boxes": "yes"}), "ocr.boxes", "boolean"),
        (image_only(images=2, ocr={"boxes": True}), "ocr.boxes", "one image"),
    ],
)
def test_mistakes_with_tasks_are_explained(service: Service, body: dict[str, Any], param: str, words: str) -> None:
    result = service.post(body)
    error = result.json["error"]
    assert (result.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
    assert service.application.in_flight.present == 0


def test_an_entry_of_the_configuration_sets_the_default_task(make_service: MakeService, tmp_path: Any) -> None:
    service = make_service(
        config_text="[models.entries.deepseek-ocr]\ntask = 'free'\n[models.entries.mine]\ntask = 'figure'\n"
    )
    assert prompt_of(service, image_only()) == "<image>\nFree OCR."
    assert prompt_of(service, image_only("mine")) == "<image>\nParse the figure."
    service.post(image_only("deepseek-ocr-q8"))  # a variant, under its base's id
    assert service.source.models["deepseek-ocr"].requests[-1].prompt == "<image>\nFree OCR."
    path = tmp_path / "wrong.toml"
    path.write_text("[models.entries.mine]\ntask = 'table'\n")
    with pytest.raises(ConfigError, match=r"task: expected one of markdown, .*, found 'table'"):
        load_config(path)


def test_models_say_their_tasks(service: Service) -> None:
    listed = {model["id"]: model for model in service.client.simulate_get("/v1/models").json["data"]}
    assert listed["deepseek-ocr"]["tasks"] == ["markdown", "ocr", "free", "figure", "describe", "locate"]
    assert listed["deepseek-ocr"]["default_task"] == "markdown"
    assert (listed["tiny-ocr"]["tasks"], listed["tiny-ocr"]["default_task"]) == (
        ["markdown", "ocr", "free", "locate"],
        "free",
    )
    assert [listed[name]["any_prompt"] for name in ("deepseek-ocr", "tiny-ocr", "paddleocr-vl")] == [True, False, False]
    assert (listed["paddleocr-vl"]["tasks"], listed["paddleocr-vl"]["default_task"]) == (
        ["ocr", "table", "formula", "chart"],
        "ocr",
    )


def events_of(service: Service, body: dict[str, Any], path: str) -> dict[str, Any]:
    """The last event that says something of the answer."""
    last = [event for event in events(service.post({**body, "stream": True}, path)) if "ocr" in str(event)][-1]
    found: dict[str, Any] = last.get("response", last)
    return found


def everywhere(service: Service, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The field ocr of chat and Responses, plain and streamed."""
    response = {key: value for key, value in {**body, "input": body["messages"]}.items() if key != "messages"}
    bodies = {"/v1/chat/completions": body, "/v1/responses": response}
    plain = [service.post(one, path).json["ocr"] for path, one in bodies.items()]
    return plain + [events_of(service, one, path)["ocr"] for path, one in bodies.items()]


@pytest.mark.parametrize(
    ("body", "ignored"),
    [
        (chat("What does it say?", "tiny-ocr"), True),
        (chat("Free OCR.", "tiny-ocr"), False),
        (image_only("tiny-ocr"), False),
        (chat("What does it say?", "paddleocr-vl"), True),
        (chat("What does it say?"), False),
    ],
)
def test_an_answer_says_when_the_words_were_none_that_the_model_knows(
    service: Service, body: dict[str, Any], ignored: bool
) -> None:
    assert [ocr.get("prompt_ignored", False) for ocr in everywhere(service, body)] == [ignored] * 4


def test_a_request_without_a_picture_gets_a_sentence_for_a_person(service: Service) -> None:
    body = {"model": "deepseek-ocr", "messages": [{"role": "user", "content": "What does it say?"}]}
    assert [ocr["finish_detail"] for ocr in everywhere(service, body)] == ["no_image"] * 4
    choice = service.post(body).json["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "Attach a picture or a PDF" in choice["message"]["content"]
    assert not any(word in choice["message"]["content"] for word in ("request", "image_url", "{", "server"))


def test_an_entry_may_name_the_tasks_that_it_was_trained_on(make_service: MakeService, tmp_path: Any) -> None:
    entry = "[models.entries.mine]\nkind = 'deepseek'\nsource = 'me/mine'\ntasks = ['locate', 'free']\n"
    service = make_service(config_text=entry + "task = 'free'\n")
    assert prompt_of(service, chat("Locate <|ref|>the total<|/ref|> in the image.", "mine")) == (
        "<image>\nLocate <|ref|>the total<|/ref|> in the image."
    )
    assert prompt_of(service, chat("Anything else", "mine")) == "<image>\nFree OCR."
    path = tmp_path / "config.toml"
    for wrong, words in (("'table'", "some of markdown"), ("", "a list of names")):
        path.write_text(entry.replace("'locate', 'free'", wrong))
        with pytest.raises(ConfigError, match=words):
            load_config(path)


def test_raw_text_is_asked_of_the_engine(service: Service) -> None:
    for ocr, raw in (({"raw": True}, True), ({"raw": False}, False), ({}, False), (None, False)):
        service.post(image_only(ocr=ocr))
        assert service.source.models["deepseek-ocr"].requests[-1].raw is raw


def place(request: Request) -> Iterable[Step]:
    # Cut in the middle of a tag: only the whole text says where things are.
    return [PLACED[:9], PLACED[9:30], PLACED[30:]]


def events(result: Any) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in result.text.split("\n") if line.startswith("data: {")]


@pytest.mark.parametrize(
    ("orientation", "size"), [(1, (200, 100)), (6, (100, 200))], ids=["upright", "turned by its EXIF data"]
)
def test_boxes_are_pixels_of_the_page_as_it_is_read(
    make_service: MakeService, orientation: int, size: tuple[int, int]
) -> None:
    service = make_service(script=place)
    image = Image.new("RGB", (200, 100), "white")
    image.getexif()[0x0112] = orientation
    url = data_url(image, "JPEG") if orientation == 1 else exif_url(image)
    body = chat(url=url, ocr={"boxes": True})
    width, height = size
    expected = [{"label": "title", "text": "# Report", "box": [0, 0, 500 * width // 999, height], "page": 1}]
    plain = service.post(body).json
    response = {**body, "input": body["messages"]}
    for ocr in (
        plain["ocr"],
        events(service.post({**body, "stream": True}))[-1]["ocr"],
        service.post(response, "/v1/responses").json["ocr"],
        events(service.post({**response, "stream": True}, "/v1/responses"))[-1]["response"]["ocr"],
    ):
        assert ocr["boxes"] == expected
        assert ocr["pages"] == [{"page": 1, "width": width, "height": height}]
    assert plain["choices"][0]["message"]["content"] == PLACED
    assert "boxes" not in service.post(chat(url=url)).json["ocr"]


def exif_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=image.getexif())
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
