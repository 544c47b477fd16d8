"""hOCR and ALTO: every word in order, in boxes that nest, as XML that other parsers take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lxml.etree
import pytest

from models.blocks import Block
from runtime.confidence import Confidence
from server.writers import PageResult
from tests.command.conftest import Program, page_of
from tests.writers.made import done, script_of, written

BLOCKS = (
    Block("title", '# A & "B" <c>', (10, 10, 590, 50), level=1, confidence=0.5),
    Block("figure", "", (10, 60, 300, 200), "image"),
    Block("text", "Two **bold** words\x00 here " * 9, (10, 210, 590, 300)),
    Block("table", "<table><tr><td>x</td><td>- 5</td></tr></table>", (10, 310, 590, 350)),
    Block("text", "שלום עולם", (10, 360, 590, 400)),
    Block("page_number", "7", (280, 770, 320, 790)),
)
WORDS = ["A", "&", '"B"', "<c>", *["Two", "bold", "words", "here"] * 9, "x", "-", "5", "שלום", "עולם", "7"]
XHTML, ALTO = "{http://www.w3.org/1999/xhtml}", "{http://www.loc.gov/standards/alto/ns-v4#}"


def parsed(form: str, *results: PageResult) -> Any:
    return lxml.etree.fromstring(written(form, results, name='a"b<c>.pdf'))


def page() -> PageResult:
    return done(1, "x", (600, 800), blocks=BLOCKS, confidence=Confidence(0.75, 0.1))


def bbox(element: Any) -> list[int]:
    return list(map(int, re.search(r"bbox (\d+) (\d+) (\d+) (\d+)", element.get("title")).groups()))  # type: ignore[union-attr]


def place(element: Any) -> list[int]:
    x, y, width, height = (int(element.get(name)) for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT"))
    return [x, y, x + width, y + height]


def nested(outer: list[int], inner: list[int]) -> bool:
    """Up to a pixel, which rounding may cost."""
    return all(a - 1 <= b for a, b in zip(outer[:2], inner[:2], strict=True)) and all(
        a + 1 >= b for a, b in zip(outer[2:], inner[2:], strict=True)
    )


def test_hocr_has_every_word_in_its_line_in_its_block_on_its_page() -> None:
    tree = parsed("hocr", page(), PageResult(2, "failed", "x"))
    pages = tree.findall(f".//{XHTML}div[@class='ocr_page']")
    assert [one.get("title") for one in pages] == [
        "image \"a'b<c>.pdf\"; bbox 0 0 600 800; ppageno 0", "image \"a'b<c>.pdf\"; bbox 0 0 0 0; ppageno 1",
    ]  # fmt: skip
    assert [block.get("class") for block in pages[0]] == [
        "ocr_carea", "ocr_photo", "ocr_carea", "ocr_table", "ocr_carea", "ocr_pageno",
    ]  # fmt: skip
    assert [bbox(block) for block in pages[0]] == [list(block.box or ()) for block in BLOCKS]
    words = pages[0].findall(f".//{XHTML}span[@class='ocrx_word']")
    assert [word.text for word in words] == WORDS
    for word in words:
        line = word.getparent()
        assert line.get("class") == "ocr_line"
        assert nested(bbox(line), bbox(word))
        assert nested(bbox(line.getparent().getparent()), bbox(line))
    assert {word.get("title").rpartition(" ")[2] for word in words[:4]} == {"50"}
    assert {word.get("title").rpartition(" ")[2] for word in words[4:]} == {"75"}
    declared = tree.find(f".//{XHTML}meta[@name='ocr-capabilities']").get("content").split()
    assert {one.get("class") for one in tree.iter() if one.get("class")} <= set(declared)
    ids = [one.get("id") for one in tree.iter() if one.get("id")]
    assert len(ids) == len(set(ids))


def test_alto_has_every_word_in_its_line_in_its_block_on_its_page() -> None:
    tree = parsed("alto", page(), PageResult(2, "failed", "x"))
    assert [child.tag.removeprefix(ALTO) for child in tree] == ["Description", "Tags", "Layout"]
    assert [child.tag.removeprefix(ALTO) for child in tree[0]] == [
        "MeasurementUnit", "sourceImageInformation", "Processing",
    ]  # fmt: skip
    assert tree.findtext(f".//{ALTO}fileName") == 'a"b<c>.pdf'
    first, second = tree.findall(f".//{ALTO}Page")
    assert len(second) == 0
    assert (first.get("WIDTH"), first.get("HEIGHT"), first.get("PC")) == ("600", "800", "0.7500")
    (space,) = first
    assert [block.tag.removeprefix(ALTO) for block in space] == [
        "TextBlock", "Illustration", "TextBlock", "TextBlock", "TextBlock", "TextBlock",
    ]  # fmt: skip
    tags = {tag.get("ID"): tag.get("LABEL") for tag in tree.iter(f"{ALTO}LayoutTag")}
    assert [tags[block.get("TAGREFS")] for block in space] == [block.kind for block in BLOCKS]
    assert [place(block) for block in space] == [list(block.box or ()) for block in BLOCKS]
    words = list(tree.iter(f"{ALTO}String"))
    assert [word.get("CONTENT") for word in words] == WORDS
    for word in words:
        assert nested(place(word.getparent()), place(word))
        assert nested(place(word.getparent().getparent()), place(word.getparent()))
    for line in tree.iter(f"{ALTO}TextLine"):
        assert [child.tag.removeprefix(ALTO) for child in line] == (["String", "SP"] * len(line))[: len(line)]
    ids = [one.get("ID") for one in tree.iter() if one.get("ID")]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("form", ["hocr", "alto"])
def test_pages_without_places_have_every_word_on_the_page_in_order(form: str) -> None:
    tree = parsed(form, done(1, "# One\n\ntwo three\n\n| a | b |\n|---|---|\n| c | d |", (600, 800)))
    of, words = (bbox, [e for e in tree.iter() if e.get("class") == "ocrx_word"]) if form == "hocr" else (
        place, list(tree.iter(f"{ALTO}String")),
    )  # fmt: skip
    assert [word.text or word.get("CONTENT") for word in words] == ["One", "two", "three", "a", "b", "c", "d"]
    boxes = [of(word) for word in words]
    assert all(nested([0, 0, 600, 800], box) for box in boxes)
    assert [box[1] for box in boxes] == sorted(box[1] for box in boxes)


def test_both_are_written_by_the_program_and_have_names_of_their_own(ocr: Program, tmp_path: Path) -> None:
    ocr.script = script_of(["", "words"])
    page_of(1).save("a.png")
    assert ocr("read", "a.png", "-o", "out", "--format", "hocr,alto,csv,xlsx") == 0, ocr.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "a.hocr", "a.alto.xml", "a.csv", "a.xlsx", "ocr-run.jsonl",
    }  # fmt: skip
    assert ocr("read", "a.png", "-o", "page.xml") == 0
    assert lxml.etree.parse(tmp_path / "page.xml").getroot().tag == f"{ALTO}alto"
