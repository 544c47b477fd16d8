"""PDFs with a text layer: what other programs find in them, and where."""

from __future__ import annotations

import html
import io
import re
import shutil
import subprocess
from pathlib import Path

import pikepdf
import psutil
import pypdf
import pypdfium2
import pytest
from PIL import Image, ImageChops, ImageDraw

from models.blocks import Block
from server.writers import FORMATS, PageResult
from tests.command.conftest import Program, page_of
from tests.pdfs import encrypted, rotated, scanned_pdf, text_pdf
from tests.writers.made import Given, done, script_of, written
from tools import glyphless

SIZE = (600, 800)
SCRIPTS = [
    "Größe über naïve façade",
    "Ελληνικά και Русский язык",
    "漢字かな交じり文",
    "한국어 문장입니다",
    "हिन्दी में लिखा हुआ",
    "ภาษาไทย",
    "العربية لغة جميلة",
    "שלום עולם",
    "emoji 😀 and 𝔘𝔫𝔦",
    "x = a_1 + b^2 * c",
]
needs_poppler = pytest.mark.skipif(shutil.which("pdftotext") is None, reason="poppler-utils are not installed")


def blocks(texts: list[str]) -> tuple[Block, ...]:
    """One below the other, with boxes of 500 x 40."""
    return tuple(Block("text", text, (50, 40 + 70 * n, 550, 80 + 70 * n)) for n, text in enumerate(texts))


def page(number: int, texts: list[str]) -> PageResult:
    return done(number, "x", SIZE, blocks=blocks(texts))


def picture(colour: str = "red") -> Image.Image:
    image = Image.new("RGB", SIZE, "white")
    ImageDraw.Draw(image).rectangle((100, 100, 300, 200), fill=colour)
    return image


def words_of(content: bytes, number: int = 1) -> tuple[tuple[float, float], list[tuple[str, list[float]]]]:
    """By poppler: size of a page as it is shown, and its words with x0, y0, x1, y1 in points from its upper left."""
    command = ["pdftotext", "-bbox", "-cropbox", "-f", str(number), "-l", str(number), "-", "-"]
    text = subprocess.run(command, input=content, capture_output=True, check=True).stdout.decode()
    width, height = map(float, re.search(r'<page width="([\d.]+)" height="([\d.]+)"', text).groups())  # type: ignore[union-attr]
    found = re.findall(r'<word xMin="(.*?)" yMin="(.*?)" xMax="(.*?)" yMax="(.*?)">(.*?)</word>', text)
    return (width, height), [(html.unescape(word), list(map(float, box))) for *box, word in found]


def text_by_poppler(content: bytes) -> str:
    return subprocess.run(["pdftotext", "-", "-"], input=content, capture_output=True, check=True).stdout.decode()


def folded(text: str) -> str:
    """Without blanks and marks of direction: what differs is how a reader breaks lines."""
    return re.sub(r"[\s\u200e\u200f\u202a-\u202e]", "", text)


@pytest.mark.parametrize("form", ["pdf", "pdf-a"])
@pytest.mark.parametrize("text", SCRIPTS)
def test_text_of_every_script_is_found_by_independent_readers(text: str, form: str) -> None:
    content = written(form, [page(1, [text])], Given({1: picture()}))
    assert pypdf.PdfReader(io.BytesIO(content)).pages[0].extract_text().split() == text.split()
    found = pypdfium2.PdfDocument(content)[0].get_textpage().get_text_range()
    assert found.split() == text.split()
    if shutil.which("pdftotext"):
        assert folded(text_by_poppler(content)) == folded(text)


@needs_poppler
@pytest.mark.parametrize("turned", [0, 90, 180, 270])
@pytest.mark.parametrize("crop", [None, (40, 30, 250, 370)])
def test_words_stand_in_the_boxes_of_their_blocks(turned: int, crop: tuple[int, int, int, int] | None) -> None:
    """Within 2 % of the page, on pages of a PDF that are turned and cropped."""
    own = rotated(scanned_pdf([picture()]), turned)
    if crop is not None:
        with pikepdf.open(io.BytesIO(own)) as pdf:
            pdf.pages[0].cropbox = pikepdf.Array(crop)
            stream = io.BytesIO()
            pdf.save(stream)
            own = stream.getvalue()
    shown = pypdfium2.PdfDocument(own)[0].render(scale=2).to_pil()
    width, height = shown.size
    texts = ["one two three four five", "six seven", "eight"]
    places = [
        (width // 10, height * (1 + 3 * n) // 10, width * 9 // 10, height * (2 + 3 * n) // 10)
        for n in range(len(texts))
    ]
    result = done(1, "x", shown.size, blocks=tuple(map(Block, ["text"] * 3, texts, places)))
    content = written("pdf", [result], Given(content=own))
    assert ImageChops.difference(shown, pypdfium2.PdfDocument(content)[0].render(scale=2).to_pil()).getbbox() is None
    with pypdfium2.PdfDocument(content) as pdf:
        text = pdf[0].get_textpage()
        assert text.get_text_range().split() == " ".join(texts).split()
    size, words = words_of(content)
    size = size[::-1] if turned in (90, 270) else size  # poppler tells that of the page before it is turned
    assert [word for word, _ in words] == " ".join(texts).split()
    found = iter(words)
    for line, place in zip(texts, places, strict=True):
        boxes = [next(found)[1] for _ in line.split()]
        whole = [min(box[0] for box in boxes), boxes[0][1], max(box[2] for box in boxes), boxes[0][3]]
        shares = [value / size[side % 2] for side, value in enumerate(whole)]
        expected = [value / (width, height)[side % 2] for side, value in enumerate(place)]
        assert [shares[side] for side in (0, 1, 3)] == pytest.approx([expected[side] for side in (0, 1, 3)], abs=0.02)
        assert expected[0] < shares[2] <= expected[2] + 0.02


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
def test_letters_lie_where_the_page_shows_them_however_it_is_turned(turned: int) -> None:
    """By pdfium, whose boxes of letters are in the page's own coordinates, as the picture on it is."""
    own = rotated(scanned_pdf([picture()]), turned)
    shown = pypdfium2.PdfDocument(own)[0].render(scale=2).to_pil()
    left, top, right, bottom = ImageChops.invert(shown.convert("L").point(lambda v: 255 * (v > 200))).getbbox()
    result = done(1, "x", shown.size, blocks=(Block("text", "wwwwwwwwww", (left, top, right, bottom)),))
    with pypdfium2.PdfDocument(written("pdf", [result], Given(content=own))) as pdf:
        text = pdf[0].get_textpage()
        boxes = [text.get_charbox(n) for n in range(10)]
        (rectangle,) = [one.get_bounds() for one in pdf[0].get_objects() if isinstance(one, pypdfium2.PdfImage)]
    # The rectangle of ``picture`` in points of the page before it is turned, from the lower left corner.
    expected = (50, 400 - 100, 150, 400 - 50)
    assert rectangle == pytest.approx((0, 0, 300, 400), abs=1)
    found = (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))
    assert found == pytest.approx(expected, abs=6)


def test_pages_of_a_pdf_keep_their_content_and_gain_a_layer(ocr: Program, tmp_path: Path) -> None:
    ocr.script = script_of(["", "", ""])
    own = text_pdf(["own words", "second", "third"])
    (tmp_path / "a.pdf").write_bytes(own)
    ocr.script = lambda number, page: "layer"
    assert ocr("read", "a.pdf", "-o", "out", "--format", "pdf,md", "--pages", "1,3") == 0, ocr.err
    content = (tmp_path / "out/a.pdf").read_bytes()
    texts = [page.extract_text().split() for page in pypdf.PdfReader(io.BytesIO(content)).pages]
    assert texts == [["own", "words", "layer"], ["third", "layer"]]
    before, after = (pypdfium2.PdfDocument(one)[0].render(scale=2).to_pil() for one in (own, content))
    assert ImageChops.difference(before, after).getbbox() is None


def test_a_picture_becomes_a_page_that_looks_like_it_and_has_its_text(ocr: Program, tmp_path: Path) -> None:
    image = page_of(200, (600, 400))
    image.save("a.png")
    assert ocr("read", "a.png", "-o", "a.pdf") == 0, ocr.err
    content = (tmp_path / "a.pdf").read_bytes()
    assert pypdf.PdfReader(io.BytesIO(content)).pages[0].extract_text().split() == ["page", "200"]
    shown = pypdfium2.PdfDocument(content)[0].render(scale=2).to_pil()
    assert shown.size == (600, 400)
    assert max(abs(a - b) for a, b in zip(shown.getpixel((300, 200)), (200, 0, 0), strict=True)) < 6


def test_pages_that_failed_are_there_without_text() -> None:
    failed = PageResult(2, "failed", "busy")
    material = Given({1: picture(), 2: picture()})
    content = written("pdf", [page(1, ["one"]), failed, PageResult(3, "failed", "gone")], material)
    reader = pypdf.PdfReader(io.BytesIO(content))
    assert [one.extract_text().split() for one in reader.pages] == [["one"], [], []]
    assert [len(one.images) for one in reader.pages] == [1, 1, 0]


def test_a_damaged_pdf_becomes_pictures_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "server"):  # another test may have quieted it
        content = written("pdf", [page(1, ["one"])], Given({1: picture()}, content=b"%PDF-1.4\nnothing"))
    assert pypdf.PdfReader(io.BytesIO(content)).pages[0].extract_text().split() == ["one"]
    assert "the PDF is damaged, and its pages become pictures" in caplog.text


def test_a_pdf_that_is_encrypted_without_a_password_is_written() -> None:
    content = written("pdf", [page(1, ["layer"])], Given(content=encrypted(text_pdf(["own"]), "")))
    assert pypdf.PdfReader(io.BytesIO(content)).pages[0].extract_text().split() == ["own", "layer"]


def test_pictures_without_colours_are_stored_in_grey() -> None:
    for colour, space in (("black", "/DeviceGray"), ("red", "/DeviceRGB")):
        with pikepdf.open(io.BytesIO(written("pdf", [page(1, ["x"])], Given({1: picture(colour)})))) as pdf:
            assert pdf.pages[0].obj.Resources.XObject.Page.ColorSpace == space


def test_pages_share_one_font_over_many_pages() -> None:
    results = [page(number, [f"page {number}"]) for number in range(1, 61)]
    content = written("pdf", results, Given(dict.fromkeys(range(1, 61), picture())))
    with pikepdf.open(io.BytesIO(content)) as pdf:
        fonts = {one.obj.Resources.Font.OcrText.objgen for one in pdf.pages}
        assert len(fonts) == 1
    texts = [one.extract_text().split() for one in pypdf.PdfReader(io.BytesIO(content)).pages]
    assert texts == [["page", str(number)] for number in range(1, 61)]


def test_a_long_document_takes_the_memory_of_a_short_one(tmp_path: Path) -> None:
    """60 pages of noise are a file of 35 MB, of which no more than a few pages are in memory."""
    noise = Image.effect_noise((850, 1100), 120).convert("RGB")
    process = psutil.Process()
    with (tmp_path / "a.pdf").open("w+b") as file:
        writer = FORMATS["pdf"].write(file, Given(dict.fromkeys(range(1, 71), noise)))
        writer.begin({"document": "x", "page_count": 70})
        for number in range(1, 11):
            writer.page(page(number, SCRIPTS))
        before = process.memory_info().rss
        for number in range(11, 71):
            writer.page(page(number, SCRIPTS))
        writer.end()
        grown = process.memory_info().rss - before
    assert (tmp_path / "a.pdf").stat().st_size > 30 << 20
    assert grown < 15 << 20


def test_the_font_is_what_its_tool_makes() -> None:
    assert glyphless.PATH.read_bytes() == glyphless.font()


# PDF/A-2b: ISO 19005-2, by its clauses, since no validator comes from the registries.


@pytest.fixture(params=["picture", "pdf"])
def archive(request: pytest.FixtureRequest) -> pikepdf.Pdf:
    own = b"" if request.param == "picture" else text_pdf(["own", "second"])
    material = Given({1: picture(), 2: picture("black")}, own)
    return pikepdf.open(io.BytesIO(written("pdf-a", [page(1, SCRIPTS), page(2, ["two"])], material)))


def test_an_archive_says_what_it_is(archive: pikepdf.Pdf) -> None:
    """6.1.2 header, 6.1.3 no encryption and an ID, 6.6.2 and 6.6.4 metadata as XMP that is not compressed."""
    assert archive.pdf_version == "1.7"
    assert not archive.is_encrypted
    assert len(archive.trailer.ID) == 2
    metadata = archive.Root.Metadata
    assert metadata.Subtype == "/XML"
    assert "/Filter" not in metadata
    with archive.open_metadata() as xmp:
        assert (xmp["pdfaid:part"], xmp["pdfaid:conformance"], xmp["dc:title"]) == ("2", "B", "x.pdf")
    assert archive.docinfo.get("/Title", "x.pdf") == "x.pdf"


def test_an_archive_says_what_its_colours_are(archive: pikepdf.Pdf) -> None:
    """6.2.3 one output intent with an ICC profile for a display, of RGB; 6.2.4 device colours only where that fits."""
    (intent,) = archive.Root.OutputIntents
    assert intent.S == "/GTS_PDFA1"
    profile = intent.DestOutputProfile.read_bytes()
    assert int(intent.DestOutputProfile.N) == 3
    assert (profile[12:16], profile[16:20], profile[36:40]) == (b"mntr", b"RGB ", b"acsp")
    assert profile[8] in (2, 4)
    spaces = {str(image.ColorSpace) for one in archive.pages for image in one.obj.Resources.XObject.values()}
    assert spaces == {"/DeviceRGB", "/DeviceGray"}


def test_an_archive_embeds_its_font_and_has_a_glyph_for_each_character(archive: pikepdf.Pdf) -> None:
    """6.2.11.4 embedded; .5 widths agree; .8 no reference to what the font does not have."""
    font = archive.pages[0].obj.Resources.Font.OcrText
    (descendant,) = font.DescendantFonts
    program = descendant.FontDescriptor.FontFile2.read_bytes()
    assert program == glyphless.font()
    assert int(descendant.DW) == glyphless.WIDTH
    glyphs = descendant.CIDToGIDMap.read_bytes()
    operands = re.findall(rb"<([0-9a-f]+)> Tj", archive.pages[0].Contents.read_bytes())
    shown = bytes.fromhex(b"".join(operands).decode())
    numbers = {int.from_bytes(shown[at : at + 2], "big") for at in range(0, len(shown), 2)}
    assert len(numbers) >= 100
    assert {glyphs[2 * number : 2 * number + 2] for number in numbers} == {b"\0\1"}
    assert b"beginbfchar" in font.ToUnicode.read_bytes()


def test_an_archive_has_nothing_that_is_not_allowed(archive: pikepdf.Pdf) -> None:
    """6.1.7 no external streams and LZW, 6.2.8 images, 6.2.10 transparency, 6.3 annotations, 6.5 actions, 6.8 files."""
    for entry in archive.objects:
        keys = set(entry.keys()) if isinstance(entry, pikepdf.Dictionary | pikepdf.Stream) else set()
        assert not keys & {
            "/F",
            "/FFilter",
            "/SMask",
            "/Alternates",
            "/OPI",
            "/AA",
            "/JS",
            "/EF",
            "/Encrypt",
            "/Annots",
        }
        assert entry.get("/Interpolate", False) is False if keys else True
        assert "/Filter" not in keys or str(entry.Filter) in ("/FlateDecode", "/DCTDecode")
        assert not keys & {"/Group", "/BM", "/ca", "/CA"}
    assert not set(archive.Root.keys()) & {"/OpenAction", "/AcroForm", "/Names", "/AA", "/OCProperties"}


def test_an_archive_of_a_pdf_has_pages_of_its_size() -> None:
    own = rotated(text_pdf(["own"], size=(300, 500)), 90)
    with pikepdf.open(io.BytesIO(written("pdf-a", [page(1, ["x"])], Given({1: picture()}, own)))) as pdf:
        assert [float(side) for side in pdf.pages[0].mediabox.as_list()] == [0, 0, 500, 300]


def test_the_kind_for_archives_is_asked_for_by_a_flag(ocr: Program, tmp_path: Path) -> None:
    page_of(7).save("a.png")
    assert ocr("read", "a.png", "-o", "out", "--format", "pdf,md", "--pdf-a") == 0
    with pikepdf.open(tmp_path / "out/a.pdf") as pdf, pdf.open_metadata() as xmp:
        assert xmp.pdfa_status == "2B"
    assert ocr("read", "a.png", "-o", "a.md", "--pdf-a") == 2
    assert "--pdf-a is a kind of PDF; add --format pdf" in ocr.err


def test_an_encrypted_pdf_gains_its_layer_with_the_password(ocr: Program, tmp_path: Path) -> None:
    ocr.script = lambda number, page: "layer"
    (tmp_path / "a.pdf").write_bytes(encrypted(text_pdf(["own"]), "secret"))
    assert ocr("read", "a.pdf", "-o", "b.pdf", "--password", "secret") == 0, ocr.err
    reader = pypdf.PdfReader(tmp_path / "b.pdf")
    assert not reader.is_encrypted
    assert reader.pages[0].extract_text().split() == ["own", "layer"]
