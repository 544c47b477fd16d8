"""PDFs as broken programs and transfers leave them, and what other viewers draw and pdfium alone does not."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pikepdf
import pytest
from PIL import Image

from models.model_errors import InvalidInput
from runtime.documents import Drawn, open_document
from runtime.documents.repair import CUT_OFF, REPAIRED
from tests.pdfs import drawn_pdf, encrypted, text_pdf

pytestmark = pytest.mark.usefixtures("lent_workers")

CASES = Path(__file__).parents[1] / "documents"
WORD = "BT /F 18 Tf 20 150 Td (Hello visible) Tj ET"
poppler = pytest.mark.skipif(shutil.which("pdftoppm") is None, reason="needs poppler (apt-get install poppler-utils)")


def first(data: bytes, **how: object) -> Drawn:
    with open_document(data, name="it", **how) as document:  # type: ignore[arg-type]
        return document.draw(0)


def seen(data: bytes, **how: object) -> np.ndarray:
    return np.asarray(first(data, **how).image.convert("L"), int)


def by_poppler(data: bytes, folder: Path) -> np.ndarray:
    """The first page at 144 dots per inch, in greys."""
    (folder / "page.pdf").write_bytes(data)
    command = ["pdftoppm", "-r", "144", "-png", "-singlefile", "page.pdf", "page"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return np.asarray(Image.open(folder / "page.png").convert("L"), int)


WHOLE = drawn_pdf(WORD)
DAMAGED: dict[str, tuple[bytes, bool]] = {  # and whether it must be said: pdfium mends some by itself
    "no header": (WHOLE[WHOLE.index(b"1 0 obj") :], True),
    "no header, and comments": (b"%\xe2\xe3\xcf\xd3\r\n\n% by hand\n" + WHOLE[WHOLE.index(b"1 0 obj") :], True),
    "2 KB of junk in front": (b"junk\n" * 410 + WHOLE, True),
    "40 KB of zeros in front": (bytes(40_000) + WHOLE, True),
    "no cross-reference table": (WHOLE[: WHOLE.index(b"xref\n")], True),
    "no trailer": (WHOLE[: WHOLE.index(b"trailer")], True),
    "cut off in the last object": (WHOLE[: WHOLE.index(b"/BaseFont") + 20], True),
    "a table that points nowhere": (re.sub(rb"startxref\n\d+", b"startxref\n0", WHOLE), False),
    "a table that counts from 1": (WHOLE.replace(b"xref\n0 6", b"xref\n1 6"), False),
    "a table whose places are wrong": (re.sub(rb"(\d{10}) 00000 n", rb"0000000001 00000 n", WHOLE), False),
    "carriage returns": (WHOLE.replace(b"\n", b"\r"), False),
    "a length that is wrong": (WHOLE.replace(b"/Length %d" % len(WORD), b"/Length 9"), False),
    "no end of objects": (WHOLE.replace(b"endobj", b"      "), False),
}


@pytest.mark.parametrize(("data", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_pdf_shows_the_page_that_it_held(data: bytes, said: bool) -> None:
    page = first(data)
    whole = seen(WHOLE)
    if data is not DAMAGED["cut off in the last object"][0]:  # which was the font
        assert np.abs(np.asarray(page.image.convert("L"), int) - whole).max() == 0
    assert page.image.size == (600, 400)
    assert page.warnings == ((REPAIRED,) if said else ())


def in_order() -> bytes:
    """Five pages of a linearised file: all of the first one comes first."""
    whole, linear = io.BytesIO(text_pdf([f"page {number}" for number in range(1, 6)])), io.BytesIO()
    with pikepdf.open(whole) as pdf:
        pdf.save(linear, linearize=True, object_stream_mode=pikepdf.ObjectStreamMode.disable)
    return linear.getvalue()


ROOTLESS = {
    "no root in the trailer": re.sub(rb"/Root \d+ 0 R", b"", WHOLE),
    "a root that is not there": re.sub(rb"/Root \d+ 0 R", b"/Root 99 0 R", WHOLE),
    "no catalog": WHOLE.replace(b"<< /Type /Catalog /Pages 2 0 R >>", b"null"),
}


@pytest.mark.parametrize("data", ROOTLESS.values(), ids=ROOTLESS)
def test_pages_are_found_without_what_leads_to_them(data: bytes) -> None:
    page = first(data)
    assert np.abs(np.asarray(page.image.convert("L"), int) - seen(WHOLE)).max() == 0
    assert (page.warnings, page.truncated) == ((REPAIRED,), False)


def test_of_a_linearised_file_that_is_cut_off_the_pages_before_are_read() -> None:
    data = in_order()
    with open_document(data[: len(data) * 6 // 10], name="it") as document:
        assert 1 <= document.page_count < 5
        page = document.draw(0)
    assert (page.warnings, page.truncated) == ((REPAIRED,), True)
    assert np.abs(np.asarray(page.image, int) - np.asarray(first(data).image, int)).max() == 0


def test_a_pdf_whose_end_is_missing_says_so_though_it_opens() -> None:
    page = first(WHOLE[: WHOLE.rindex(b"%%EOF")])
    assert (page.warnings, page.truncated) == ((CUT_OFF,), True)
    junk = first(WHOLE + b"<html>" * 100)
    assert (junk.warnings, junk.truncated) == ((), False)


def test_an_encrypted_pdf_without_its_trailer_is_refused_rather_than_shown_empty() -> None:
    data = encrypted(text_pdf(["secret"]), "pass", "AES-256")
    with pytest.raises(InvalidInput, match="it cannot be read"):
        first(re.sub(rb"/Root \d+ 0 R", b"", data), password="pass")


def test_the_shared_cases_are_drawn() -> None:
    for name in ("no_header.pdf", "crop_outside.pdf"):
        page = seen((CASES / name).read_bytes())
        assert page.shape == (400, 600)
        assert page.min() < 50


def test_what_is_no_pdf_at_all_is_still_refused() -> None:
    for data in (b"%PDF-1.7\nnothing else", b"just words", b"1 0 obj\nof words\n", bytes(5000)):
        with pytest.raises(InvalidInput, match="it cannot be read"):
            first(data)


def test_a_picture_with_a_pdfs_mark_far_in_it_is_a_picture() -> None:
    buffer = io.BytesIO()
    Image.new("L", (40, 30), 255).save(buffer, "TIFF", description="x" * 2000 + "%PDF-1.4")
    assert seen(buffer.getvalue()).shape == (30, 40)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("unit", [0.5, 1, 4])
def test_a_page_in_larger_units_has_more_pixels(unit: float, compressed: bool) -> None:
    pdf = pikepdf.open(io.BytesIO(WHOLE))
    pdf.pages[0].obj.UserUnit = unit
    buffer = io.BytesIO()
    mode = pikepdf.ObjectStreamMode.generate if compressed else pikepdf.ObjectStreamMode.disable
    pdf.save(buffer, object_stream_mode=mode)
    assert seen(buffer.getvalue()).shape == (400 * unit, 600 * unit)


def test_units_that_make_no_sense_are_left_alone() -> None:
    for unit in ("0", "-3", "1e30", "(two)", "[2]", "null"):
        assert seen(drawn_pdf(WORD, f"/UserUnit {unit}")).shape == (400, 600)


ANNOTATIONS = {
    "ink": "/Subtype /Ink /InkList [[50 50 80 110 110 60 150 120]] /C [1 0 0] /BS << /W 3 >>",
    "two strokes of ink": "/Subtype /Ink /InkList [[50 50 80 110] [110 60 150 120]] /C [0 0 1]",
    "line": "/Subtype /Line /L [50 50 150 120] /C [0 0 1] /BS << /W 2 >>",
    "line without a colour": "/Subtype /Line /L [50 50 150 120]",
    "polygon": "/Subtype /Polygon /Vertices [50 50 150 50 100 120] /C [0 0.5 0] /IC [1 1 0] /BS << /W 2 >>",
    "hollow polygon": "/Subtype /Polygon /Vertices [50 50 150 50 100 120] /C [0 0.5 0] /Border [0 0 3]",
    "polyline": "/Subtype /PolyLine /Vertices [50 50 150 50 100 120] /C [0 0.5 0] /Border [0 0 4]",
    "square": "/Subtype /Square /C [0 0.5 0] /BS << /W 2 >>",
    "dashed ink": "/Subtype /Ink /InkList [[50 50 80 110 110 60]] /C [1 0 0] /BS << /W 3 /S /D /D [9 5] >>",
    "ink that shows what is below": "/Subtype /Ink /InkList [[50 50 80 110 150 50]] /CA 0.4 /BS << /W 5 >>",
    "line between two measured points": "/Subtype /Line /L [60 60 140 60] /C [0 0 1] /LL 20 /LLE 8 /BS << /W 2 >>",
    "line with arrows": "/Subtype /Line /L [55 60 140 110] /LE [/ClosedArrow /OpenArrow] /IC [1 1 0] /BS << /W 2 >>",
    "line with a circle and a diamond": "/Subtype /Line /L [55 60 140 110] /LE [/Circle /Diamond] /BS << /W 2 >>",
    "line with a square and a bar": "/Subtype /Line /L [60 60 140 110] /LE [/Square /Butt] /C [1 0 0] /BS << /W 2 >>",
    "line with arrows inwards": "/Subtype /Line /L [65 65 130 105] /LE [/ROpenArrow /RClosedArrow] /BS << /W 2 >>",
    "polyline with ends": "/Subtype /PolyLine /Vertices [55 55 145 55 100 115] /LE [/Slash /OpenArrow] /BS << /W 2 >>",
    "link": "/Subtype /Link /C [1 0 0] /Border [0 0 2]",
    "link under a line": "/Subtype /Link /C [0 0 1] /BS << /W 2 /S /U >>",
}


def test_a_text_that_speaks_of_pdfs_is_no_damaged_one() -> None:
    text = b"# A program.\n" * 200 + b"MARK = b'%PDF-1.7'\n" + b"# Its end.\n" * 200
    with pytest.raises(InvalidInput, match="not a known format"):
        first(text)
    with pytest.raises(InvalidInput, match="it is damaged or cut off"):
        first(b"%PDF-1.7\nand nothing else")


@poppler
@pytest.mark.parametrize("annotation", ANNOTATIONS.values(), ids=ANNOTATIONS)
def test_an_annotation_without_appearance_is_drawn_as_poppler_draws_it(annotation: str, tmp_path: Path) -> None:
    data = drawn_pdf(WORD, f"/Annots [<< /Type /Annot /Rect [50 50 150 120] {annotation} >>]")
    ours, theirs = seen(data), by_poppler(data, tmp_path)
    assert np.abs(ours - seen(WHOLE)).mean() > 0.5  # something was added
    assert np.abs(ours - theirs).mean() < 0.6  # of 255: the edges of strokes and letters
    assert (np.abs(ours - theirs) > 128).mean() < 0.001


def lines_of(annotation: str) -> int:
    """Lines of text inside an annotation's rectangle."""
    data = drawn_pdf("", f"/Annots [<< /Type /Annot /Rect [20 20 280 180] {annotation} >>]")
    inked = (seen(data)[45:355, 50:550] < 200).any(1)
    return int((np.diff(np.concatenate([[False], inked]).astype(int)) == 1).sum())


@pytest.mark.parametrize(
    ("annotation", "lines"),
    [
        ("/Subtype /FreeText /DA (/Helv 18 Tf 0 g) /Contents (five words)", 1),
        (f"/Subtype /FreeText /DA (0 0 1 rg /Helv 18 Tf) /C [1 1 0.8] /Contents ({'seven hex ' * 11})", 4),
        ("/Subtype /FreeText /DA (/Helv 18 Tf 0 g) /Contents (one\\rtwo\\nsun)", 3),
        ("/Subtype /FreeText /Contents (no default appearance)", 1),
        ("/Subtype /Stamp /Name /NotApproved", 1),
        ("/Subtype /FreeText /F 2 /Contents (hidden)", 0),
    ],
    ids=["a line", "long", "ends of lines", "without a font", "stamp", "hidden"],
)
def test_all_lines_of_a_text_without_appearance_are_drawn(annotation: str, lines: int) -> None:
    assert lines_of(annotation) == lines


def test_a_text_with_an_appearance_is_drawn_once_as_it_is() -> None:
    form = (
        "<< /Type /XObject /Subtype /Form /BBox [0 0 100 70] /Length 26 >>\n"
        "stream\n1 0 0 rg 0 0 100 70 re f   \nendstream"
    )
    text = "/Subtype /FreeText /Contents (as it is) /AP << /N 6 0 R >>"
    data = drawn_pdf("", f"/Annots [<< /Type /Annot /Rect [50 50 150 120] {text} >>]", [form])
    with open_document(data, name="it", dpi=72) as document:
        twice = [np.asarray(document.page(0)) for _ in range(2)]
    assert (twice[0] == twice[1]).all()
    assert (twice[0][85:145, 55:145] == (255, 0, 0)).all()


def test_the_same_page_drawn_again_shows_the_same_texts() -> None:
    text = "/Subtype /FreeText /Contents (twice) /DA (/Helv 18 Tf 0 g)"
    with open_document(drawn_pdf("", f"/Annots [<< /Rect [50 50 150 120] {text} >>]"), name="it") as document:
        assert (np.asarray(document.page(0)) == np.asarray(document.page(0))).all()


def test_annotations_of_any_shape_stop_nothing() -> None:
    odd = [
        "/Subtype /Ink /InkList [[]]", "/Subtype /Ink /InkList 7", "/Subtype /Line /L [1]", "/Subtype /Line",
        "/Subtype /Polygon /Vertices [1 2]", "/Subtype /Polygon /Vertices [(a) (b) (c) (d)]", "/Subtype /Nothing",
        "/Subtype /Line /L [0 0 1e30 -1e30]", "/Subtype /Ink /InkList [[1 2 3 4]] /BS 3", "/AP 9 /Subtype /Line",
        "/Subtype /FreeText", "/Subtype /FreeText /DA 3 /Contents 4 /RD [1] /CL [1 2] /Q (x)",
        "/Subtype /Stamp /Name 7", "/Subtype /Stamp /Name /#01", "/Subtype /Link /BS << /W (x) >>",
        "/Subtype /FreeText /DA (/F 1.2.3 Tf 9 9 9 9 k) /Contents (\\000\\033) /CA (y)",
        "/Subtype /FreeText /Contents <FEFFD83DDE00FFFE200BD800E000>",
        "/Subtype /Line /L [50 50 99 99] /LE [7 /Circle] /LL (x) /Border [0 0 1 [0 0]]",
        "/Subtype /Line /L [9 9 9 9] /LL 3",
    ]  # fmt: skip
    annotations = " ".join(f"<< /Type /Annot /Rect [50 50 150 120] {one} >>" for one in odd)
    assert seen(drawn_pdf(WORD, f"/Annots [{annotations} 99 0 R null]")).min() < 50


# Passwords.


@pytest.mark.parametrize("algorithm", ["AES-256", "AES-128", "RC4-128", "RC4-40"])
@pytest.mark.parametrize("password", ["pass", "Grüße", "owner"])
def test_an_encrypted_document_opens_with_its_password(algorithm: str, password: str) -> None:
    data = encrypted(text_pdf(["secret"]), "pass" if password == "owner" else password, algorithm)
    assert seen(data, password=password).min() < 50


@pytest.mark.parametrize(("password", "words"), [
    (None, r"it is encrypted; give its password \(--password, OCR_ONNX_PDF_PASSWORD; ocr.password"),
    ("", "the password that was given is not the one that opens it"),
    ("other", "the password that was given is not the one that opens it"),
    ("\U0001f511" * 50, "the password that was given is not the one that opens it"),
])  # fmt: skip
def test_a_missing_or_wrong_password_is_said(password: str | None, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        first(encrypted(text_pdf(["secret"]), "pass"), password=password)
    assert password is None or not password or password not in str(caught.value)


def test_a_password_for_what_is_not_encrypted_is_no_mistake(picture: Callable[..., Image.Image]) -> None:
    assert seen(text_pdf(["open"]), password="any").min() < 50
    buffer = io.BytesIO()
    picture(30, 20).save(buffer, "PNG")
    assert seen(buffer.getvalue(), password="any").shape == (20, 30)


def test_an_encrypted_document_that_is_damaged_is_repaired_with_its_password() -> None:
    data = encrypted(text_pdf(["secret"]), "pass", "RC4-128")
    page = first(b"junk\n" * 500 + data, password="pass")
    assert page.warnings == (REPAIRED,)
    assert np.asarray(page.image).min() < 50
