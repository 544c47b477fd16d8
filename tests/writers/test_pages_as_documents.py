"""HTML and Word files of whole documents, opened by other programs' parsers."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path, PurePath

import docx
import html5lib
import lxml.html
import pytest
from PIL import Image

from models.blocks import Block, boxes_of
from server.command.plan import DocumentPlan
from server.command.source import DocumentSource
from server.command.stdout import Printer
from server.writers import FORMATS, PageResult
from tests.command.conftest import Program, page_of
from tests.pdfs import scanned_pdf
from tests.web.web_server import HOSTILE
from tests.writers.made import NOTHING, Given, done, script_of, written

FIGURE = (
    "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 100]]<|/det|>\n# Report\n\n"
    "<|ref|>image<|/ref|><|det|>[[0, 500, 499, 999]]<|/det|>\n"
)
TABLE = '<table><tr><td colspan="2">wide</td></tr><tr><td>a</td><td>b</td></tr></table>\n\nIt is \\(x^2\\).'
XHTML = "{http://www.w3.org/1999/xhtml}"


def picture() -> Image.Image:
    """White with a red lower left quarter."""
    page = Image.new("RGB", (100, 200), "white")
    page.paste((255, 0, 0), (0, 100, 50, 200))
    return page


def is_red(content: bytes) -> bool:
    with Image.open(io.BytesIO(content)) as image:
        red, green, blue = image.convert("RGB").getpixel((10, 10))  # type: ignore[misc]
        return image.size == (49, 100) and red > 240 and green < 15 and blue < 15


def test_html_is_one_well_formed_file_with_figures_and_formulas_inside() -> None:
    content = written("html", [done(1, FIGURE), PageResult(2, "failed", "<no>"), done(3, TABLE)], Given({1: picture()}))
    parser = html5lib.HTMLParser(strict=False)
    tree = parser.parse(content.decode())
    assert [error for _, error, _ in parser.errors if error not in ("expected-doctype-but-got-start-tag",)] == []
    assert tree.findtext(f".//{XHTML}h1") == "Report"
    source = tree.find(f".//{XHTML}img").get("src")
    assert is_red(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))
    assert tree.find(f".//{XHTML}td[@colspan='2']").text == "wide"
    assert tree.find(".//{http://www.w3.org/1998/Math/MathML}msup") is not None
    assert "page 2 could not be read: <no>" in "".join(tree.itertext())
    assert [section.get("id") for section in tree.iter(f"{XHTML}section") if section.get("id")] == [
        "page-1", "page-2", "page-3",
    ]  # fmt: skip


def test_a_hostile_page_runs_nothing_in_the_html_file() -> None:
    tree = lxml.html.document_fromstring(written("html", [done(1, HOSTILE)], name="</title><script>x</script>"))
    assert [element.tag for element in tree.iter("script", "iframe", "svg", "form", "object")] == []
    attributes = {name for element in tree.iter() for name in element.attrib}
    assert not {name for name in attributes if name.startswith("on")}
    assert not [image for image in tree.iter("img") if image.get("src")]
    assert tree.find(".//meta[@http-equiv]").get("content", "").startswith("default-src 'none'")


def test_a_word_file_has_headings_tables_figures_and_formulas() -> None:
    content = written("docx", [done(1, FIGURE), PageResult(2, "failed", "<no>"), done(3, TABLE)], Given({1: picture()}))
    document = docx.Document(io.BytesIO(content))
    assert [paragraph.text for paragraph in document.paragraphs if paragraph.style.name == "Heading 1"] == ["Report"]
    table = document.tables[0]
    assert table.cell(0, 0)._tc is table.cell(0, 1)._tc
    assert [cell.text for cell in table.rows[1].cells] == ["a", "b"]
    pictures = [part.blob for part in document.part.package.iter_parts() if "/media/" in part.partname]
    assert [is_red(content) for content in pictures] == [True]
    markup = document.element.xml
    assert "<m:sSup>" in markup
    assert "page 2 could not be read: <no>" in [paragraph.text for paragraph in document.paragraphs]
    assert markup.count('<w:br w:type="page"/>') == 2


def test_pages_without_figures_are_not_drawn_again() -> None:
    material = Given()
    written("html", [done(1, TABLE)], material)
    assert material.drawn == []


@pytest.mark.parametrize("form", ["html", "docx"])
def test_a_document_is_read_into_one_file_without_pictures_beside_it(ocr: Program, tmp_path: Path, form: str) -> None:
    ocr.script = script_of([FIGURE, TABLE])
    (tmp_path / "a.pdf").write_bytes(scanned_pdf([page_of(number, (100, 200)) for number in range(2)]))
    assert ocr("read", "a.pdf", "-o", "out", "--format", form) == 0, ocr.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"a.{form}", "ocr-run.jsonl"]
    assert ocr("read", "a.pdf", "-o", "out", "--format", form, "--resume") == 0
    assert ocr.seen == []


def test_a_file_that_is_no_text_goes_to_standard_output_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    printer = Printer("docx", NOTHING, io.BytesIO())
    plan = DocumentPlan(DocumentSource(Path("x.pdf"), PurePath("x.pdf")), "x", pages=(0, 1))
    printer.begin(plan, {"document": "x.pdf", "page_count": 2})
    printer.settle(plan, done(2, "second"))
    printer.settle(plan, done(1, "first"))
    assert out.buffer.getvalue() == b""  # type: ignore[attr-defined]
    printer.finish(plan, {}, NOTHING)
    printer.close()
    document = docx.Document(io.BytesIO(out.buffer.getvalue()))  # type: ignore[attr-defined]
    assert [paragraph.text.strip() for paragraph in document.paragraphs] == ["first", "", "second"]


def test_a_terminal_is_sent_no_file_that_is_no_text(ocr: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    page_of(7).save("a.png")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert ocr("read", "a.png", "--format", "docx") == 2
    assert "docx is no text for a terminal; name a file with -o" in ocr.err


@pytest.mark.parametrize("form", [name for name, form in FORMATS.items() if form.needs])
def test_packages_that_are_missing_are_named_with_what_installs_them(ocr: Program, monkeypatch, form: str) -> None:
    page_of(7).save("a.png")
    monkeypatch.setattr("server.writers.find_spec", lambda name: None if name == FORMATS[form].needs[-1] else name)
    assert ocr("read", "a.png", "-o", f"a.{FORMATS[form].ending}", "--format", form) == 2
    assert re.search(rf"--format {form} needs {FORMATS[form].needs[-1]}, .*pip install 'ocr-onnx\[formats\]'", ocr.err)
    assert ocr.readers == []


@pytest.mark.parametrize("form", ["html", "docx"])
def test_pictures_that_a_text_has_places_for_are_inside(form: str) -> None:
    """As the task ``document`` and layout models write them."""
    blocks = (Block("title", "T", (0, 0, 100, 50), level=1), Block("figure", "", (0, 100, 49, 200), "picture"))
    text = "# T\n\n<!-- image [0, 100, 49, 200] -->\n\nwords"
    page = done(1, text, blocks=blocks, boxes=boxes_of(blocks))
    content = written(form, [page], Given({1: picture()}))
    if form == "html":
        tree = lxml.html.document_fromstring(content)
        assert [one.text for one in tree.iter("h1")] == ["T"]
        (source,) = [one.get("src") for one in tree.iter("img")]
        assert is_red(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))
    else:
        document = docx.Document(io.BytesIO(content))
        pictures = [part.blob for part in document.part.package.iter_parts() if "/media/" in part.partname]
        assert [is_red(content) for content in pictures] == [True]
        assert "words" in [paragraph.text for paragraph in document.paragraphs]


def test_html_has_no_control_characters_of_names_errors_and_texts() -> None:
    pages = [done(1, "bell\x07 and escape\x1b[31m"), PageResult(2, "failed", "it says \x1b[2J")]
    text = written("html", pages, name="red\x1b[31m\udcff.pdf").decode()
    assert not [sign for sign in text if ord(sign) < 32 and sign != "\n"]
    assert "bell and escape[31m" in text
