"""Pages that were turned before they were read: what is written says where things are on the page as it came."""

from __future__ import annotations

import io
import json
from typing import Any

import lxml.etree
import pypdf
import pypdfium2
import pytest
from PIL import Image, ImageDraw

from models.blocks import Block
from models.grounding import Box
from models.turned import back, quarters_and_rest, turned, turned_box, turned_size
from server.writers import PageResult
from server.writers.material import figure_pictures
from tests.pdfs import rotated as with_rotation
from tests.pdfs import scanned_pdf
from tests.writers.made import Given, done, written
from tests.writers.test_places import ALTO, XHTML, bbox, place

SIZE = (600, 800)  # of the page as it was read
TEXT, FIGURE = (50, 100, 450, 130), (100, 300, 200, 420)
TURNS = pytest.mark.parametrize("degrees", [90, 180, 270])
ASKEW = pytest.mark.parametrize("degrees", [2.5, 357.0, 92.5, 177.75])


def read_as(degrees: float) -> PageResult:
    blocks = (Block("text", "Hello turned world", TEXT, "text"), Block("figure", "", FIGURE, "image"))
    boxes = (Box("text", "Hello turned world", TEXT), Box("image", "", FIGURE))
    return done(1, "Hello turned world", SIZE, boxes=boxes, blocks=blocks, rotated=degrees)


def came(box: Any, degrees: float) -> list[float]:
    return list(turned_box(box, SIZE, back(degrees)))


def page_as_it_came(degrees: float) -> Image.Image:
    page = Image.new("RGB", SIZE, "white")
    ImageDraw.Draw(page).rectangle((FIGURE[0], FIGURE[1], FIGURE[2] - 1, FIGURE[1] + 9), fill="red")  # its upper edge
    return turned(page, back(degrees))


@TURNS
def test_json_says_the_turn_and_the_places_as_the_page_came(degrees: int) -> None:
    (page,) = json.loads(written("json", [read_as(degrees)]))["pages"]
    assert page["rotated"] == degrees
    assert (page["width"], page["height"]) == turned_size(SIZE, degrees)
    for entries in (page["boxes"], page["blocks"]):
        assert [entry["box"] for entry in entries] == [came(TEXT, degrees), came(FIGURE, degrees)]
    assert PageResult.from_json(page).blocks == read_as(degrees).blocks


@TURNS
def test_words_in_hocr_and_alto_are_where_they_are_on_the_page_as_it_came(degrees: int) -> None:
    results = [read_as(degrees)]
    x0, y0, x1, y1 = came(TEXT, degrees)
    hocr, alto = (lxml.etree.fromstring(written(form, results)) for form in ("hocr", "alto"))
    (line,) = hocr.findall(f".//{XHTML}span[@class='ocr_line']")
    assert line.get("title").endswith(f"; textangle {degrees}")
    (block,) = alto.findall(f".//{ALTO}TextBlock")
    assert block.get("ROTATION") == str(degrees)
    words = [bbox(one) for one in hocr.findall(f".//{XHTML}span[@class='ocrx_word']")]
    assert words == [place(one) for one in alto.findall(f".//{ALTO}String")]
    assert len(words) == 3
    assert all(x0 - 1 <= a and y0 - 1 <= b and c <= x1 + 1 and d <= y1 + 1 for a, b, c, d in words)
    along = [word[degrees % 180 // 90] for word in words]  # of lines that run down the page: their upper edges
    assert along == sorted(along, reverse=degrees in (90, 180))
    width, height = turned_size(SIZE, degrees)
    assert f"bbox 0 0 {width} {height};" in hocr.find(f".//{XHTML}div[@class='ocr_page']").get("title")
    assert [alto.find(f".//{ALTO}Page").get(side) for side in ("WIDTH", "HEIGHT")] == [str(width), str(height)]


@TURNS
@pytest.mark.parametrize("form", ["pdf", "pdf-a"])
@pytest.mark.parametrize("original", ["picture", "pdf", "pdf with a rotation"])
def test_text_of_a_pdf_is_selected_where_it_is_seen(degrees: int, form: str, original: str) -> None:
    picture = page_as_it_came(degrees)
    pdf = scanned_pdf([picture])
    if original.endswith("rotation"):
        pdf = with_rotation(scanned_pdf([turned(picture, 270)]), 90)
    content = written(form, [read_as(degrees)], Given({1: picture}, b"" if original == "picture" else pdf))
    document = pypdfium2.PdfDocument(content)
    page = document[0]
    across, down = (side / pixels for side, pixels in zip(page.get_size(), picture.size, strict=True))
    assert across == pytest.approx(down, rel=0.01)  # it looks as it came
    text = page.get_textpage()
    assert pypdf.PdfReader(io.BytesIO(content)).pages[0].extract_text().split() == ["Hello", "turned", "world"]
    assert text.count_chars() >= len("Hello turned world")
    x0, y0, x1, y1 = came(TEXT, degrees)
    for letter in range(text.count_chars()):
        box = text.get_charbox(letter, loose=True)
        corners = [seen(page, *corner) for corner in (box[:2], box[2:])]
        for x, y in corners:
            assert x0 - 6 <= x / across <= x1 + 6
            assert y0 - 6 <= y / down <= y1 + 6


@ASKEW
def test_a_page_that_was_straightened_says_so_beside_its_turn(degrees: float) -> None:
    (page,) = json.loads(written("json", [read_as(degrees)]))["pages"]
    quarters, askew = quarters_and_rest(degrees)
    assert (page.get("rotated", 0), page["straightened"]) == (quarters, askew)
    assert (page["width"], page["height"]) == turned_size(SIZE, quarters)
    assert [entry["box"] for entry in page["blocks"]] == [came(TEXT, degrees), came(FIGURE, degrees)]
    again = PageResult.from_json(page)
    assert (again.size_as_it_came, again.width, again.height) == ((page["width"], page["height"]), *SIZE)
    for found, given in zip(again.blocks, read_as(degrees).blocks, strict=True):
        assert found.box == pytest.approx(given.box, abs=1)
    assert again.to_json() == PageResult.from_json(again.to_json()).to_json()


@ASKEW
@pytest.mark.parametrize("form", ["pdf", "pdf-a"])
def test_text_of_a_pdf_that_lies_askew_leans_with_what_is_seen(degrees: float, form: str) -> None:
    picture = page_as_it_came(degrees)
    content = written(form, [read_as(degrees)], Given({1: picture}, scanned_pdf([picture])))
    page = pypdfium2.PdfDocument(content)[0]
    scale = page.get_size()[0] / picture.width
    text = page.get_textpage()
    middles = []
    for letter in range(text.count_chars()):
        left, bottom, right, top = text.get_charbox(letter, loose=True)
        middles.append((((left + right) / 2) / scale, (page.get_size()[1] - (bottom + top) / 2) / scale))
    upright = [turned_box((x, y, x, y), picture.size, degrees) for x, y in middles]
    middle = (TEXT[1] + TEXT[3]) / 2
    assert len(upright) >= len("Hello turned world")
    assert all(abs(y - middle) < 8 and TEXT[0] - 8 < x < TEXT[2] + 8 for x, y, _, _ in upright)


def seen(page: Any, x: float, y: float) -> tuple[float, float]:
    """A point of the page as it is shown, from its upper left corner."""
    left, bottom, _, top = page.get_cropbox()
    match page.get_rotation():
        case 90:
            return y - bottom, x - left
        case 0:
            return x - left, top - y
    raise AssertionError("the test has no such pages")


@pytest.mark.parametrize("degrees", [90, 180, 270, 2.5, 92.5])
def test_figures_are_cut_out_upright(degrees: float) -> None:
    (content,) = figure_pictures(read_as(degrees), Given({1: page_as_it_came(degrees)}))
    with Image.open(io.BytesIO(content)) as figure:
        assert figure.size == (FIGURE[2] - FIGURE[0], FIGURE[3] - FIGURE[1])
        top, bottom = figure.getpixel((50, 4)), figure.getpixel((50, 100))
    assert top[1] < 80  # type: ignore[index]  # red
    assert bottom[1] > 180  # type: ignore[index]  # white
