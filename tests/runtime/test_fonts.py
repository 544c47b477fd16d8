"""Text in fonts that a PDF does not hold is drawn with the machine's, or its page says what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.documents import Drawn, open_document
from runtime.documents.fonts import SCRIPTS, face_for, has_fontconfig, missing_scripts, script_of
from tests.pdfs import drawn_pdf

pytestmark = pytest.mark.usefixtures("lent_workers")

CASES = Path(__file__).parents[1] / "documents"


def needs(*names: str) -> pytest.MarkDecorator:
    lacking = {script.name for script in missing_scripts()} if has_fontconfig() else set(names)
    return pytest.mark.skipif(bool(lacking & set(names)), reason=f"needs fontconfig and fonts for {', '.join(names)}")


def drawn(data: bytes) -> Drawn:
    with open_document(data, name="it") as document:
        return document.draw(0)


def columns_of_ink(page: Drawn, top: int, bottom: int) -> int:
    """Letters in a band of rows: runs of columns with ink."""
    ink = (np.asarray(page.image.convert("L"))[top:bottom] < 128).any(0)
    return int((np.diff(ink.astype(int)) == 1).sum())


def encoded(base: str, names: str, kind: str = "Type1") -> bytes:
    """Six letters, A to F, that an encoding of the file's own gives other names."""
    font = (
        f"<< /Type /Font /Subtype /{kind} /BaseFont /{base} /FirstChar 65 /LastChar 70 "
        f"/Widths [800 800 800 800 800 800] /Encoding << /Type /Encoding /Differences [65 {names}] >> >>"
    )
    return drawn_pdf("BT /F 24 Tf 2 Tc 20 100 Td (ABCDEF) Tj ET", f"/Resources << /Font << /F {font} >> >>")


POLISH = "/Lslash /aogonek /Zdotaccent /eogonek /sacute /nacute"
RUSSIAN = "/afii10017 /afii10018 /afii10019 /afii10020 /afii10066 /afii10067"
GREEK = "/Gamma /Delta /Theta /Xi /Pi /Sigma"


@needs("Latin", "Cyrillic", "Greek")
@pytest.mark.parametrize("names", [POLISH, RUSSIAN, GREEK], ids=["Polish", "Russian", "Greek"])
@pytest.mark.parametrize("base", ["Helvetica", "ArialMT", "TimesNewRomanPSMT", "Courier-Bold", "Unheard-Of"])
def test_letters_that_the_standard_fonts_lack_are_drawn(base: str, names: str) -> None:
    page = drawn(encoded(base, names, "TrueType" if "MT" in base else "Type1"))
    assert page.warnings == ()
    assert columns_of_ink(page, 130, 220) >= 6


@needs("Chinese")
def test_chinese_that_is_not_in_the_file_is_drawn() -> None:
    page = drawn((CASES / "cjk_zh.pdf").read_bytes())
    assert page.warnings == ()
    assert columns_of_ink(page, 50, 110) >= 8  # of eight characters, some in two parts


def cid_text(ordering: str, cmap: str, codes: str) -> bytes:
    descendant = (
        f"<< /Type /Font /Subtype /CIDFontType0 /BaseFont /Any "
        f"/CIDSystemInfo << /Registry (Adobe) /Ordering ({ordering}) /Supplement 2 >> /DW 1000 "
        "/FontDescriptor << /Type /FontDescriptor /FontName /Any /Flags 4 "
        "/FontBBox [0 -200 1000 900] /ItalicAngle 0 /Ascent 880 /Descent -120 /CapHeight 880 /StemV 80 >> >>"
    )
    font = f"<< /Type /Font /Subtype /Type0 /BaseFont /Any /Encoding /{cmap} /DescendantFonts [{descendant}] >>"
    return drawn_pdf(f"BT /F 24 Tf 20 100 Td <{codes}> Tj ET", f"/Resources << /Font << /F {font} >> >>")


@needs("Chinese", "Japanese", "Korean")
@pytest.mark.parametrize(
    ("ordering", "cmap", "text"),
    [("GB1", "UniGB-UCS2-H", "中文文档"), ("CNS1", "UniCNS-UCS2-H", "繁體中文"),
     ("Japan1", "UniJIS-UCS2-H", "日本語の"), ("Korea1", "UniKS-UCS2-H", "한국어글")],
)  # fmt: skip
def test_text_of_the_four_east_asian_collections_is_drawn(ordering: str, cmap: str, text: str) -> None:
    page = drawn(cid_text(ordering, cmap, text.encode("utf-16-be").hex()))
    assert page.warnings == ()
    assert columns_of_ink(page, 130, 220) >= 4


def identity_text(text: str, named: bool) -> bytes:
    """A text in glyphs of a font that is not in the file, counted from 40. named : the file says what they are."""
    letters = " ".join(f"<{40 + n:04x}> <{letter.encode('utf-16-be').hex()}>" for n, letter in enumerate(text))
    cmap = (
        f"begincmap 1 begincodespacerange <0000> <ffff> endcodespacerange {len(text)} beginbfchar {letters} endbfchar"
    )
    stream = f"<< /Length {len(cmap)} >>\nstream\n{cmap}\nendstream"
    descendant = (
        "<< /Type /Font /Subtype /CIDFontType2 /BaseFont /ArialUnicodeMS /DW 1000 "
        "/CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> "
        "/FontDescriptor << /Type /FontDescriptor /FontName /ArialUnicodeMS /Flags 4 "
        "/FontBBox [0 -200 1000 900] /ItalicAngle 0 /Ascent 880 /Descent -120 /CapHeight 880 /StemV 80 >> >>"
    )
    to_unicode = "/ToUnicode 6 0 R" if named else ""
    font = (
        f"<< /Type /Font /Subtype /Type0 /BaseFont /ArialUnicodeMS /Encoding /Identity-H "
        f"/DescendantFonts [{descendant}] {to_unicode} >>"
    )
    codes = "".join(f"{40 + n:04x}" for n in range(len(text)))
    return drawn_pdf(f"BT /F 24 Tf 20 100 Td <{codes}> Tj ET", f"/Resources << /Font << /F {font} >> >>", [stream])


@needs("Chinese", "Japanese", "Korean", "Greek")
@pytest.mark.parametrize("text", ["中文文档", "日本語の", "한국어글", "ΩαλΞ"])
def test_glyphs_of_a_missing_font_are_drawn_by_the_letters_that_the_file_names(text: str) -> None:
    page = drawn(identity_text(text, named=True))
    assert page.warnings == ()
    assert columns_of_ink(page, 130, 220) >= 4


def test_glyphs_of_a_missing_font_that_the_file_does_not_name_are_said_to_be_guesses() -> None:
    (warning,) = drawn(identity_text("abcdef", named=False)).warnings
    assert "6 letters may be drawn as others: the font ArialUnicodeMS is not in the file" in warning


def test_letters_without_any_font_are_said_with_the_package_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # without fontconfig
    page = drawn(encoded("Helvetica", RUSSIAN))
    assert len(page.warnings) == 1
    assert "such as" in page.warnings[0]
    assert "(U+041" in page.warnings[0]
    assert page.warnings[0].endswith(
        "the font Helvetica is not in the file, and this machine has none for Cyrillic "
        "(apt-get install fonts-dejavu-core)"
    )


def test_a_page_that_lacks_nothing_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for content in (
        "BT /F 18 Tf 20 150 Td (Hello, plain words. fi 1/2) Tj ET",
        "BT /F 18 Tf 3 Tr 20 150 Td (unseen words under a scan) Tj ET",
        "1 1 1 rg BT /F 18 Tf 20 150 Td (white words) Tj ET",
        "BT /F 18 Tf 2000 150 Td (words beside the page) Tj ET",
        "BT /F 0.5 Tf 20 150 Td (words too small for a pixel) Tj ET",
        "0 0 0 rg 0 0 300 200 re f 1 0 0 rg BT /F 18 Tf 20 150 Td (red on black) Tj ET",
    ):
        assert drawn(drawn_pdf(content)).warnings == ()


def test_words_under_a_scan_or_a_bar_are_not_missing_and_those_over_one_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    words, bar = "0 g BT /F 18 Tf 20 150 Td (under it) Tj ET", "1 1 1 rg 0 100 300 100 re f"
    scan = "q 300 0 0 100 0 100 cm BI /W 1 /H 1 /CS /G /BPC 8 /F /AHx ID FF> EI Q"
    for cover in (bar, scan):
        assert drawn(drawn_pdf(f"{words} {cover}")).warnings == ()
        (warning,) = drawn(over(cover)).warnings
        assert warning.startswith("6 letters, such as")


def over(ground: str) -> bytes:
    """Letters that the standard fonts lack, on something."""
    font = (
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /FirstChar 65 /LastChar 70 /Widths [800 800 800 800 800 "
        f"800] /Encoding << /Type /Encoding /Differences [65 {RUSSIAN}] >> >>"
    )
    words = f"{ground} 0 g BT /F 24 Tf 2 Tc 20 150 Td (ABCDEF) Tj ET"
    return drawn_pdf(words, f"/Resources << /Font << /F {font} >> >>")


@needs("Cyrillic", "Chinese")
def test_a_font_is_found_by_what_it_holds() -> None:
    assert face_for("Helvetica", [ord("Ж")]) is not None
    assert face_for("Helvetica", [ord("中")]) != face_for("Helvetica", [ord("Ж")])
    assert face_for("Helvetica", [0x10FFFD]) is None
    assert face_for("a:charset=41,b\\", [ord("Ж")]) is not None  # a name from a file is no pattern


def test_every_script_holds_its_letters() -> None:
    for script in SCRIPTS:
        assert all(script_of(ord(letter)) == script for letter in script.letters), script.name
