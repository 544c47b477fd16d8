"""Pages of PDFs look as poppler draws them: fonts of ten scripts, turned, cropped, in layers, in CMYK, as pictures."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pikepdf
import pytest
from fontTools.ttLib import TTFont
from PIL import Image

from runtime.documents import open_document
from runtime.documents.fonts import SCRIPTS, Script, face_for, has_fontconfig
from tests.pdfs import drawn_pdf

pytestmark = [
    pytest.mark.usefixtures("lent_workers"),
    pytest.mark.skipif(
        shutil.which("pdftoppm") is None or not has_fontconfig(),
        reason="needs poppler and fontconfig (apt-get install poppler-utils fontconfig)",
    ),
]

WORD = "BT /F 18 Tf 20 150 Td (as poppler draws it) Tj ET 40 40 60 30 re f"


def drawn(data: bytes) -> np.ndarray:
    """The first page at 144 dots per inch, shape [height, width, 3]."""
    with open_document(data, name="it") as document:
        page = document.draw(0)
    assert page.warnings == ()
    return np.asarray(page.image, int)


def by_poppler(data: bytes, folder: Path) -> np.ndarray:
    (folder / "page.pdf").write_bytes(data)
    command = ["pdftoppm", "-r", "144", "-cropbox", "-png", "-singlefile", "page.pdf", "page"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return np.asarray(Image.open(folder / "page.png").convert("RGB"), int)


def alike(data: bytes, folder: Path, *, mean: float = 1.5, tolerance: int = 128) -> np.ndarray:
    """Compare, and return what we drew: the two differ at the edges of letters only."""
    ours, theirs = drawn(data), by_poppler(data, folder)
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs)
    assert difference.mean() < mean
    assert (difference.max(2) > tolerance).mean() < 0.004
    assert ours.min() < 100  # something is there
    return ours


def with_font(path: Path, letters: str) -> bytes:
    """A page with letters of a TrueType font that the file holds whole, by the numbers of its glyphs."""
    with TTFont(path, lazy=True) as font:
        names, order = font.getBestCmap(), font.getReverseGlyphMap()
        codes = "".join(f"{order[names[ord(letter)]]:04x}" for letter in letters)
        scale = 1000 / font["head"].unitsPerEm
        widths = " ".join(
            f"{order[names[ord(letter)]]} [{font['hmtx'][names[ord(letter)]][0] * scale:.0f}]" for letter in letters
        )
    pdf = pikepdf.open(io.BytesIO(drawn_pdf(f"BT /F 30 Tf 20 100 Td <{codes}> Tj ET")))
    descriptor = pikepdf.Dictionary(
        Type=pikepdf.Name.FontDescriptor, FontName=pikepdf.Name.Held, Flags=4, FontBBox=[-500, -500, 1500, 1500],
        ItalicAngle=0, Ascent=900, Descent=-300, CapHeight=700, StemV=80, FontFile2=pdf.make_stream(path.read_bytes()),
    )  # fmt: skip
    descendant = pikepdf.Dictionary(
        Type=pikepdf.Name.Font, Subtype=pikepdf.Name.CIDFontType2, BaseFont=pikepdf.Name.Held,
        CIDSystemInfo=pikepdf.Dictionary(Registry="Adobe", Ordering="Identity", Supplement=0),
        FontDescriptor=pdf.make_indirect(descriptor), CIDToGIDMap=pikepdf.Name.Identity,
        W=pikepdf.Object.parse(f"[{widths}]".encode()),
    )  # fmt: skip
    pdf.pages[0].Resources.Font.F = pikepdf.Dictionary(
        Type=pikepdf.Name.Font, Subtype=pikepdf.Name.Type0, BaseFont=pikepdf.Name.Held,
        Encoding=pikepdf.Name("/Identity-H"), DescendantFonts=[pdf.make_indirect(descendant)],
    )  # fmt: skip
    buffer = io.BytesIO()
    pdf.save(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("script", SCRIPTS[:13], ids=[script.name for script in SCRIPTS[:13]])
def test_fonts_of_many_scripts_look_alike(script: Script, tmp_path: Path) -> None:
    face = face_for("Noto Sans", [*map(ord, script.letters)])
    if face is None or face.path.suffix != ".ttf":
        pytest.skip(f"no TrueType font for {script.name} here (apt-get install {script.package})")
    alike(with_font(face.path, script.letters), tmp_path)


@pytest.mark.parametrize(
    "page",
    ["/Rotate 90", "/Rotate 180", "/Rotate 270", "/Rotate -90", "/CropBox [10 20 250 180]",
     "/CropBox [-50 -50 900 900]", "/CropBox [10 20 250 180] /Rotate 90"],
)  # fmt: skip
def test_turned_and_cropped_pages_look_alike(page: str, tmp_path: Path) -> None:
    alike(drawn_pdf(WORD, page), tmp_path)


def test_a_layer_that_is_switched_off_is_not_drawn(tmp_path: Path) -> None:
    content = WORD + " /OC /Off BDC 150 40 60 30 re f EMC /OC /On BDC 220 40 60 30 re f EMC"
    resources = "/Resources << /Font << /F 5 0 R >> /Properties << /Off 6 0 R /On 7 0 R >> >>"
    data = drawn_pdf(content, resources, ["<< /Type /OCG /Name (off) >>", "<< /Type /OCG /Name (on) >>"])
    catalog = b"<< /Type /Catalog /Pages 2 0 R >>"
    layers = b"<< /Type /Catalog /Pages 2 0 R /OCProperties << /OCGs [6 0 R 7 0 R] /D << /OFF [6 0 R] >> >> >>"
    page = alike(data.replace(catalog, layers), tmp_path)
    assert page[290, 360].tolist() == [255, 255, 255]
    assert page[290, 500].tolist() == [0, 0, 0]


def test_inks_of_a_press_look_alike(tmp_path: Path) -> None:
    inks = ["0 0 0 1", "1 0 0 0", "0 1 0 0", "0 0 1 0", "0 1 1 0", "1 0 1 0.2"]
    content = " ".join(f"{ink} k {20 + 45 * number} 40 40 100 re f" for number, ink in enumerate(inks))
    page = alike(drawn_pdf(content), tmp_path, mean=12)  # each has a profile of its own for them
    assert page[200, 60].max() < 60  # black is


def picture_pdf(data: bytes, how: str, size: tuple[int, int]) -> bytes:
    pdf = pikepdf.open(io.BytesIO(drawn_pdf("q 260 0 0 160 20 20 cm /I Do Q")))
    stream = pdf.make_stream(data)
    described = pikepdf.Object.parse(
        f"<< /Type /XObject /Subtype /Image /Width {size[0]} /Height {size[1]} {how} >>".encode()
    )
    for key, value in described.items():
        stream[key] = value
    pdf.pages[0].Resources.XObject = pikepdf.Dictionary(I=stream)
    buffer = io.BytesIO()
    pdf.save(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_of_jpeg_2000_look_alike(mode: str, tmp_path: Path) -> None:
    image = Image.linear_gradient("L").resize((260, 160)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG2000", irreversible=False)
    alike(picture_pdf(buffer.getvalue(), "/Filter /JPXDecode", image.size), tmp_path, mean=4)


def fax() -> bytes:
    """A dark block on 260 x 160 pixels, as a fax encodes it (T.6)."""
    image = Image.new("1", (260, 160), 1)
    image.paste(0, (40, 40, 120, 90))
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", compression="group4")
    with Image.open(buffer) as tiff:
        place, length = tiff.tag_v2[273][0], tiff.tag_v2[279][0]  # type: ignore[attr-defined]
    return buffer.getvalue()[place : place + length]


GREYS = "/ColorSpace /DeviceGray /BitsPerComponent 1"


def test_pictures_of_a_fax_look_alike(tmp_path: Path) -> None:
    how = f"/Filter /CCITTFaxDecode /DecodeParms << /K -1 /Columns 260 /Rows 160 >> {GREYS}"
    alike(picture_pdf(fax(), how, (260, 160)), tmp_path, mean=4)


def test_pictures_of_jbig2_look_alike(tmp_path: Path) -> None:
    def segment(number: int, kind: int, data: bytes) -> bytes:
        return struct.pack(">IBBBI", number, kind, 0, 1, len(data)) + data

    sheet = segment(0, 48, struct.pack(">IIIIBH", 260, 160, 0, 0, 0, 0))
    region = segment(1, 38, struct.pack(">IIIIBB", 260, 160, 0, 0, 0, 1) + fax())  # 1: coded as a fax is
    page = alike(picture_pdf(sheet + region, f"/Filter /JBIG2Decode {GREYS}", (260, 160)), tmp_path, mean=4)
    assert (page[200, 200].min(), page[100, 500].max()) == (255, 0)  # Pillow writes white as a fax's black
