"""Answers by a schema: every field that asks for one reaches the engine, and what cannot be had is refused by name."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from typing import Any

import pytest
from PIL import Image

from models.families import FAMILIES
from tests.server.conftest import MakeService, Service, chat, data_url

SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}
OPENAI = {"type": "json_schema", "json_schema": {"name": "page", "schema": SCHEMA, "strict": True}}


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSeek-OCR with its task for words, as if that took a template."""
    able = dataclasses.replace(FAMILIES["deepseek-ocr"], extraction="locate")
    monkeypatch.setattr("models.extraction.FAMILIES", {**FAMILIES, able.id: able})


@pytest.mark.parametrize(
    "fields",
    [{"response_format": OPENAI}, {"guided_json": SCHEMA}, {"guided_json": json.dumps(SCHEMA)},
     {"structured_outputs": {"json": SCHEMA}}],
)  # fmt: skip
def test_each_spelling_of_a_schema_reaches_the_engine(service: Service, fields: dict[str, Any]) -> None:
    result = service.post(chat("Which total?", **fields))
    assert result.status_code == 200, result.json
    assert result.json["ocr"]["prompt_ignored"]  # DeepSeek-OCR's own question is asked instead
    (request,) = service.source.models["deepseek-ocr"].requests
    assert json.loads(request.schema) == SCHEMA
    assert '"total": ""' in request.prompt


def test_responses_have_the_schema_in_text_and_say_so(service: Service) -> None:
    text = {"format": {"type": "json_schema", "name": "page", "schema": SCHEMA}}
    content = [{"type": "input_image", "image_url": data_url()}]
    body = {"model": "deepseek-ocr", "input": [{"role": "user", "content": content}], "text": text}
    result = service.post(body, "/v1/responses")
    assert result.status_code == 200, result.json
    assert json.loads(service.source.models["deepseek-ocr"].requests[0].schema) == SCHEMA
    assert result.json["text"] == text


def test_any_object_takes_a_template_of_the_clients_own(service: Service) -> None:
    result = service.post(chat('{"total": ""}', task="locate", response_format={"type": "json_object"}))
    assert result.status_code == 200, result.json
    (request,) = service.source.models["deepseek-ocr"].requests
    assert json.loads(request.schema) == {"type": "object"}
    refused = service.post({**chat(""), "response_format": {"type": "json_object"}})
    assert refused.status_code == 400
    assert "names no properties" in refused.json["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format", "no schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}, "response_format", "object"),
        ({"response_format": {"type": "grammar"}}, "response_format", "json_schema"),
        ({"guided_json": "{"}, "guided_json", "not valid JSON"),
        ({"guided_json": SCHEMA, "response_format": OPENAI}, "guided_json", "both"),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs", "JSON schema"),
        ({"guided_regex": "a+"}, "guided_regex", "JSON schema"),
        ({"response_format": OPENAI, "task": "free"}, "response_format", "task 'free' takes no schema"),
    ],
)
def test_what_is_no_schema_is_refused_with_its_field(
    service: Service, fields: dict[str, Any], param: str, told: str
) -> None:
    result = service.post(chat("", **fields))
    error = result.json["error"]
    assert (result.status_code, error["param"]) == (400, param)
    assert told in error["message"]


def test_a_document_of_several_pages_takes_one_at_a_time(make_service: MakeService) -> None:
    service = make_service()
    pages = [Image.new("RGB", (40, 30), "white") for _ in range(2)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "PDF", save_all=True, append_images=pages[1:])
    data = f"data:application/pdf;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    part = {"type": "file", "file": {"file_data": data, "filename": "two.pdf"}}
    body = {"model": "deepseek-ocr", "messages": [{"role": "user", "content": [part]}], "response_format": OPENAI}
    refused = service.post(body)
    assert refused.status_code == 400
    assert "ocr.pages" in refused.json["error"]["message"]
    assert service.post({**body, "ocr": {"pages": "2"}}).status_code == 200


def test_models_that_cannot_be_asked_say_so(service: Service) -> None:
    result = service.post(chat("", model="paddleocr-vl", response_format=OPENAI))
    assert result.status_code == 400
    assert "paddleocr-vl cannot be asked for fields" in result.json["error"]["message"]
