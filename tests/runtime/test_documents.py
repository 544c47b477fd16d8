"""Documents become pages, and what is no document is refused with a reason and a remedy."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from models.model_errors import InvalidInput
from runtime.documents import open_document, parse_pages
from runtime.documents.picture import PicturePages
from tests.pdfs import encrypted, rotated, scanned_pdf, text_pdf, without_pages

pytestmark = pytest.mark.usefixtures("lent_workers")

Picture = Callable[..., Image.Image]


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def corner_marked(width: int = 80, height: int = 40) -> Image.Image:
    """White, with a black block in the upper left corner."""
    image = Image.new("RGB", (width, height), "white")
    image.paste("black", (0, 0, width // 4, height // 4))
    return image


def dark_corner(image: Image.Image) -> str:
    """Which corner of an image is the darkest."""
    grey = np.asarray(image.convert("L"))
    corners = {
        "upper left": grey[:5, :5],
        "upper right": grey[:5, -5:],
        "lower right": grey[-5:, -5:],
        "lower left": grey[-5:, :5],
    }
    return min(corners, key=lambda name: corners[name].mean())


def test_a_pdf_of_text_has_its_pages_at_the_dots_per_inch_asked_for() -> None:
    with open_document(text_pdf(["one", "two"]), dpi=72) as document:
        assert document.page_count == 2
        page = document.page(1)
        assert (page.size, page.mode) == ((595, 842), "RGB")
        assert np.asarray(page).min() < 50  # something is written
        assert np.asarray(page)[-100:].min() == 255  # and not everywhere
    with open_document(text_pdf(["one"]), dpi=144) as document:
        assert document.page(0).size == (1190, 1684)


def test_a_scanned_page_comes_back_with_its_own_pixels_and_colours() -> None:
    image = Image.new("RGB", (200, 100), (200, 30, 60))
    with open_document(scanned_pdf([image], dpi=144), dpi=144) as document:
        page = document.page(0)
    assert page.size == image.size
    assert np.abs(np.asarray(page, int) - np.asarray(image, int)).max() <= 1


@pytest.mark.parametrize(
    ("degrees", "corner"), [(0, "upper left"), (90, "upper right"), (180, "lower right"), (270, "lower left")]
)
def test_a_pages_rotation_is_honoured(degrees: int, corner: str) -> None:
    with open_document(rotated(scanned_pdf([corner_marked()]), degrees)) as document:
        page = document.page(0)
    assert page.size == ((40, 80) if degrees in (90, 270) else (80, 40))
    assert dark_corner(page) == corner


def test_pages_of_mixed_sizes_keep_their_own(picture: Picture) -> None:
    sizes = [(300, 200), (50, 400), (123, 45)]
    with open_document(scanned_pdf([picture(*size) for size in sizes])) as document:
        assert [document.page(index).size for index in range(3)] == sizes


def test_a_huge_page_is_drawn_within_the_pixel_limit() -> None:
    with open_document(text_pdf(["wall"], (14_400, 14_400)), dpi=600, max_pixels=1_000_000) as document:
        width, height = document.page(0).size
    assert 900_000 < width * height <= 1_000_000
    with open_document(text_pdf(["ribbon"], (14_400, 3)), dpi=600) as document:
        assert document.page(0).width <= 32_001


def test_a_document_with_an_empty_password_opens() -> None:
    with open_document(encrypted(text_pdf(["open"]), "")) as document:
        assert document.page_count == 1


def test_three_hundred_pages_are_held_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "long.pdf"
    path.write_bytes(text_pdf([f"page {number}" for number in range(300)]))
    process = psutil.Process()
    with open_document(path, dpi=72) as document:
        assert document.page_count == 300
        for index in range(20):
            document.page(index)
        before = process.memory_info().rss
        for index in range(300):
            document.page(index)
    # Each page has 1.5 MB; all of them kept would be 450 MB.
    assert process.memory_info().rss - before < 40e6


def test_scans_are_held_one_at_a_time_too(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 300, 400, 3), np.uint8)
    path = tmp_path / "scans.pdf"
    path.write_bytes(scanned_pdf([Image.fromarray(page) for page in noise] * 3))
    process = psutil.Process()
    with open_document(path) as document:
        for index in range(20):
            document.page(index)
        before = process.memory_info().rss
        for index in range(20, 120):
            document.page(index)
        assert np.abs(np.asarray(document.page(119), int) - noise[39]).max() <= 1
    # Each page has 0.36 MB of pixels, which pdfium would keep.
    assert process.memory_info().rss - before < 15e6


def test_threads_share_documents(tmp_path: Path) -> None:
    data = text_pdf([f"page {number} " * 3 for number in range(12)])
    with open_document(data, dpi=36) as first, open_document(data, dpi=36) as second:
        alone = [first.page(index).tobytes() for index in range(12)]
        with ThreadPoolExecutor(8) as pool:
            jobs = [(document, index) for index in range(12) for document in (first, second)] * 3
            together = list(pool.map(lambda job: job[0].page(job[1]).tobytes(), jobs))
    assert together == [alone[index] for _, index in jobs]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_picture_is_a_document_of_one_page(form: str, tmp_path: Path) -> None:
    path = tmp_path / "no-extension"
    path.write_bytes(saved(corner_marked(), form))
    with open_document(path) as document:
        assert document.page_count == 1
        page = document.page(0)
    assert (page.mode, page.size, dark_corner(page)) == ("RGB", (80, 40), "upper left")


def test_the_frames_of_a_tiff_are_pages_and_those_of_an_animation_are_not() -> None:
    frames = [Image.new("RGB", (10 + number, 10), (number * 20, 0, 0)) for number in range(5)]
    with open_document(saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])) as document:
        assert document.page_count == 5
        pages = [document.page(index) for index in (4, 0, 2)]
    assert [page.size[0] for page in pages] == [14, 10, 12]
    assert [page.getpixel((0, 0)) for page in pages] == [(80, 0, 0), (0, 0, 0), (40, 0, 0)]
    with open_document(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])) as document:
        assert document.page_count == 1


def test_a_picture_is_turned_upright_and_its_tones_are_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    with open_document(saved(corner_marked(), "JPEG", exif=exif)) as document:
        page = document.page(0)
    assert (page.size, dark_corner(page)) == ((40, 80), "upper right")
    assert 0x0112 not in page.getexif()
    grey = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    with open_document(saved(grey, "PNG")) as document:
        assert document.page(0).getpixel((0, 0)) == (128, 128, 128)


def cut_off_pdf() -> bytes:
    return text_pdf(["a text"])[:150]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty; it has 0 bytes"),
        (b"just words", "not a known format.*documents are PDF, PNG"),
        (encrypted(text_pdf(["secret"]), "pass"), "it is encrypted; give its password"),
        (cut_off_pdf(), "damaged or cut off; get the file again"),
        (b"%PDF-1.7\nnothing else", "damaged or cut off"),
        (without_pages(), "has no pages; save it anew"),
    ],
    ids=["empty", "not a document", "encrypted", "cut off", "header only", "no pages"],
)
def test_what_cannot_be_opened_is_explained(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.pdf"
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match=words) as caught:
        open_document(path)
    assert "bad.pdf" in str(caught.value)
    with pytest.raises(InvalidInput, match=words) as caught:
        open_document(data, name="upload 1")
    assert "upload 1" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nothing\.pdf cannot be opened: No such file"):
        open_document(tmp_path / "nothing.pdf")
    with pytest.raises(InvalidInput, match=r"Is a directory|Permission"):
        open_document(tmp_path)


def test_a_picture_that_is_cut_off_and_decoded_as_a_whole_is_refused(picture: Picture) -> None:
    half = saved(picture(200, 200), "WEBP", lossless=True)[:3000]
    with (
        pytest.raises(InvalidInput, match=r"half\.webp cannot be read"),
        open_document(half, name="half.webp") as document,
    ):
        document.page(0)


def test_a_picture_beyond_the_pixel_limit_is_scaled_and_one_far_beyond_is_refused() -> None:
    with open_document(saved(Image.new("L", (300, 300)), "PNG"), name="big.png", max_pixels=80_000) as document:
        assert document.page(0).size == (282, 282)
    with (
        open_document(saved(Image.new("L", (1000, 1000)), "PNG"), name="big.png", max_pixels=80_000) as document,
        pytest.raises(InvalidInput, match=r"big\.png has 1000 x 1000 pixels; the limit is 0\.96 million"),
    ):
        document.page(0)


def test_a_limit_above_pillows_own_is_the_one_that_holds() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    side = int((2 * Image.MAX_IMAGE_PIXELS) ** 0.5) + 100
    data = saved(Image.new("1", (side, side)), "TIFF", compression="group4")
    with open_document(data, max_pixels=side * side) as document:
        assert document.size(0) == (side, side)


def tiff(frames: int) -> bytes:
    """Frames of one pixel, which they all share."""
    tags = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    size = 2 + len(entries) + 4
    starts = [*(12 + size * number for number in range(frames)), 0]
    directories = [struct.pack("<H", len(tags)) + entries + struct.pack("<I", start) for start in starts[1:]]
    return b"II*\0" + struct.pack("<I", starts[0]) + b"\x7f\0\0\0" + b"".join(directories)


def test_a_tiff_of_more_frames_than_anybody_reads_is_refused_without_counting_them() -> None:
    with open_document(tiff(2000)) as document:
        assert document.page_count == 2000
        assert document.page(1999).getpixel((0, 0)) == (127, 127, 127)
    with pytest.raises(InvalidInput, match=r"many\.tif has more than 2,000 frames, the most that are read; split it"):
        open_document(tiff(20_000), name="many.tif")


def test_the_pages_of_a_long_tiff_cost_the_same_each(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    load = TiffImagePlugin.ImageFileDirectory_v2.load
    monkeypatch.setattr(
        TiffImagePlugin.ImageFileDirectory_v2, "load", lambda self, file: read.append(1) or load(self, file)
    )
    pages = PicturePages(tiff(600), "it", 1000, first_only=False, transparency="white")
    assert pages.count == 600
    assert len(read) <= 2 * 600 + 2  # Pillow reads a frame's directory twice
    read.clear()
    for index in (*range(300), 599, 10, 400):
        assert pages.size(index) == (1, 1)
        assert pages.page(index).image.getpixel((0, 0)) == (127, 127, 127)
    assert len(read) <= 4 * 303
    pages.close()


@pytest.mark.parametrize("data", [text_pdf(["one"]), saved(corner_marked(), "PNG")], ids=["pdf", "picture"])
def test_there_are_no_pages_beyond_the_ends(data: bytes) -> None:
    with open_document(data, name="it") as document:
        for index in (-1, 1):
            with pytest.raises(InvalidInput, match="it has 1 page; there is no page"):
                document.page(index)


def test_a_closed_document_says_so() -> None:
    document = open_document(text_pdf(["one"]), name="it")
    document.close()
    document.close()
    with pytest.raises(InvalidInput, match="it has been closed"):
        document.page(0)


def test_a_resolution_that_makes_no_sense_is_refused() -> None:
    for dpi in (0, 17, 1201):
        with pytest.raises(InvalidInput, match=f"dpi is {dpi}; it must be between 18 and 1200"):
            open_document(text_pdf(["one"]), dpi=dpi)


def test_one_damaged_page_leaves_the_others_readable() -> None:
    data = text_pdf(["one", "two", "three"])
    assert b"[ 4 0 R  8 0 R  12 0 R ]" in data
    with open_document(data.replace(b"  8 0 R ", b"  99 0 R "), name="it") as document:  # the second is not there
        assert document.page_count == 3
        assert document.page(0).size == document.page(2).size
        with pytest.raises(InvalidInput, match="page 2 of it is damaged"):
            document.page(1)


@pytest.mark.parametrize(
    ("text", "indices"),
    [("1", [0]), ("1-5,9", [0, 1, 2, 3, 4, 8]), (" 9 , 2 - 3 ", [1, 2, 8]), ("8-", [7, 8, 9]), ("3,3,2-4", [1, 2, 3])],
)
def test_page_numbers_are_read(text: str, indices: list[int]) -> None:
    assert parse_pages(text, 10) == indices


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("1,,2", "cannot be read"),
        ("one", "'one' cannot be read; write numbers and ranges such as 1-5,9"),
        ("-3", "cannot be read"),
        ("1-2-3", "cannot be read"),
        ("٣", "cannot be read"),
        ("9" * 5000, "cannot be read"),
        ("0", "pages count from 1"),
        ("5-2", "'5-2' is no range"),
        ("11", "page 11 is beyond the end: there are 10 pages"),
        ("2-900000000", "page 900000000 is beyond"),
        ("11-", "page 11 is beyond"),
    ],
)
def test_wrong_page_numbers_are_explained(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse_pages(text, 10)


@given(st.text(alphabet="0123456789-, x", max_size=30), st.integers(1, 50))
def test_any_text_gives_pages_that_exist_or_an_error(text: str, count: int) -> None:
    try:
        indices = parse_pages(text, count)
    except InvalidInput:
        return
    assert indices
    assert indices == sorted(set(indices))
    assert 0 <= indices[0] <= indices[-1] < count
