"""``ocr.orient``: pages that lie are turned before they are read, and what is told is about the page as it came."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pytest
from PIL import Image

from models.turned import back, turned
from runtime.requests import Request
from tests.pdfs import scanned_pdf
from tests.server.conftest import MakeService, Service, chat, data_url, image_part
from tests.server.document_requests import file_part
from tests.server.fake import Step
from tests.turning import text_page

PAGE = text_page()
TITLE = "<|ref|>title<|/ref|><|det|>[[0, 0, 500, 999]]<|/det|>\n# Report"  # the left half of the page as it is read


def place(request: Request) -> Iterable[Step]:
    return [TITLE]


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(script=place)


def seen(service: Service) -> Image.Image:
    """The picture that the model was given last."""
    return service.source.models["deepseek-ocr"].requests[-1].images[0]


def same(one: Image.Image, other: Image.Image) -> bool:
    return (
        one.size == other.size
        and one.convert("L").resize((70, 90)).tobytes() == other.convert("L").resize((70, 90)).tobytes()
    )


LYING = {90: (0, 349, 900, 700), 180: (349, 0, 700, 900), 270: (0, 0, 900, 350)}  # turn -> the left half as it came


@pytest.mark.parametrize("degrees", LYING)
@pytest.mark.parametrize("document", [False, True])
def test_a_lying_page_is_read_upright_and_its_places_are_told_as_it_came(
    service: Service, degrees: int, document: bool
) -> None:
    lying = turned(PAGE, back(degrees))
    part = file_part(scanned_pdf([lying], dpi=144)) if document else image_part(data_url(lying))
    body = {
        "model": "deepseek-ocr",
        "messages": [{"role": "user", "content": [part]}],
        "ocr": {"boxes": True, "orient": "auto"},
    }
    answer = service.post(body).json["ocr"]
    (page,) = answer["pages"]
    assert (page["rotated"], page["width"], page["height"]) == (degrees, *lying.size)
    assert seen(service).size == PAGE.size
    assert document or same(seen(service), PAGE)
    (box,) = answer["boxes"]
    assert box["box"] == pytest.approx(LYING[degrees], abs=2)
    response = service.post({**body, "input": body["messages"]}, "/v1/responses").json["ocr"]
    assert response["pages"][0]["rotated"] == degrees
    assert response["boxes"] == answer["boxes"]


@pytest.mark.parametrize("ocr", [{}, {"orient": "off"}, {"boxes": True}])
def test_without_being_asked_nothing_is_turned(service: Service, ocr: dict[str, Any]) -> None:
    lying = turned(PAGE, 90)
    answer = service.post(chat(url=data_url(lying), ocr=ocr)).json["ocr"]
    assert same(seen(service), lying)
    assert all("rotated" not in page for page in answer.get("pages", ()))


def test_upright_and_empty_pages_are_left_and_nothing_is_told_of_them(service: Service) -> None:
    for page in (PAGE, Image.new("RGB", (400, 300), "white")):
        answer = service.post(chat(url=data_url(page), ocr={"orient": "auto"})).json["ocr"]
        assert same(seen(service), page)
        assert "pages" not in answer


def test_the_turn_is_told_without_boxes_too_and_of_each_of_several_images(service: Service) -> None:
    content = [
        image_part(data_url(PAGE)),
        image_part(data_url(turned(PAGE, 180))),
        {"type": "text", "text": "Free OCR."},
    ]
    body = {"model": "deepseek-ocr", "messages": [{"role": "user", "content": content}], "orient": "auto"}
    pages = service.post(body).json["ocr"]["pages"]
    assert [page.get("rotated") for page in pages] == [None, 180]


def test_the_configuration_decides_where_the_request_does_not(make_service: MakeService) -> None:
    service = make_service(script=place, config_text='[inference]\norient = "auto"\n')
    url = data_url(turned(PAGE, 180))
    assert service.post(chat(url=url)).json["ocr"]["pages"][0]["rotated"] == 180
    assert "pages" not in service.post(chat(url=url, ocr={"orient": "off"})).json["ocr"]


@pytest.mark.parametrize(
    "body", [{"orient": "sideways"}, {"ocr": {"orient": "sideways"}}, {"orient": "auto", "ocr": {"orient": "off"}}]
)
def test_what_is_no_way_to_turn_is_refused_by_name(service: Service, body: dict[str, Any]) -> None:
    answer = service.post(chat(**body))
    assert answer.status_code == 400
    assert "orient" in answer.json["error"]["message"]


def test_mistral_has_no_word_for_it_and_gets_pages_as_they_come(make_service: MakeService) -> None:
    service = make_service(script=place, config_text='[inference]\norient = "auto"\n')
    lying = turned(PAGE, 180)
    stream = io.BytesIO()
    lying.save(stream, "PNG")
    body = {"model": "mistral-ocr-latest", "document": {"type": "image_url", "image_url": data_url(lying)}}
    assert service.post(body, "/v1/ocr").status_code == 200
    assert same(seen(service), lying)
