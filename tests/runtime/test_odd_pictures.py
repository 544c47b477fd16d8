"""Pictures as scanners, cameras and broken transfers leave them: read right, or refused with what they are."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from models.model_errors import InvalidInput
from models.pixels import to_rgb
from runtime.documents import open_document
from runtime.documents.scaling import fitting, scaled_rgb

pytestmark = pytest.mark.usefixtures("lent_workers")

CASES = Path(__file__).parents[1] / "documents"


def page(width: int = 300, height: int = 120) -> Image.Image:
    """White, with a word on it, in greys."""
    image = Image.new("L", (width, height), 255)
    ImageDraw.Draw(image).text((20, height // 4), "as drawn", fill=0, font=ImageFont.load_default(40))
    return image


def saved(image: Image.Image, form: str = "TIFF", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def tiff(samples: np.ndarray, bits: int, *, sample_format: int = 1, white_is_zero: bool = False, **tags: int) -> bytes:
    """An uncompressed grey TIFF: the samples' bytes as they are, or packed by twelve bits."""
    height, width = samples.shape
    data = samples.tobytes()
    if bits == 12:
        pairs = samples.astype(np.uint32).reshape(height, -1, 2)
        packed = pairs[..., 0] << 12 | pairs[..., 1]
        data = np.stack([packed >> 16, packed >> 8, packed], -1).astype(np.uint8).tobytes()
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: int(not white_is_zero), 277: 1, 278: height}
    entries |= {279: len(data), 339: sample_format} | {int(number[1:]): value for number, value in tags.items()}
    entries[273] = 8 + 2 + 12 * (len(entries) + 1) + 4
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0" * 4 + data


def drawn(data: bytes, **options: object) -> np.ndarray:
    """The first page as the model gets it, in greys."""
    with open_document(data, name="it", **options) as document:  # type: ignore[arg-type]
        return np.asarray(document.page(0).convert("L"), int)


WORD = np.asarray(page(), np.float64) / 255

DEPTHS = {
    "floats from 0 to 1": tiff(WORD.astype(np.float32), 32, sample_format=3),
    "floats from 0 to 255": tiff((WORD * 255).astype(np.float32), 32, sample_format=3),
    "floats from 0 to 65535": tiff((WORD * 65535).astype(np.float32), 32, sample_format=3),
    "floats where white is 0": tiff((1 - WORD).astype(np.float32), 32, sample_format=3, white_is_zero=True),
    "floats with a hole": tiff(np.where(WORD < 0.001, np.nan, WORD).astype(np.float32), 32, sample_format=3),
    "12 bits packed": tiff((WORD * 4095).astype(np.uint16), 12),
    "10 bits in 16": tiff((WORD * 1023).astype(np.uint16), 16),
    "12 bits in 16": tiff((WORD * 4095).astype(np.uint16), 16),
    "14 bits in 16": tiff((WORD * 16383).astype(np.uint16), 16),
    "16 bits": tiff((WORD * 65535).astype(np.uint16), 16),
    "16 bits as PNG": saved(Image.fromarray((WORD * 65535).astype(np.uint16)), "PNG"),
    "32 bits with 16 in them": tiff((WORD * 65535).astype(np.uint32), 32),
    "16 bits whose white the file tells": tiff((WORD * 30000).astype(np.uint16), 16, t281=30000),
}


@pytest.mark.parametrize("data", DEPTHS.values(), ids=DEPTHS)
def test_greys_of_any_depth_come_out_as_they_look(data: bytes) -> None:
    assert np.abs(drawn(data) - WORD * 255).max() <= 1


@pytest.mark.parametrize("bits", [10, 14])
def test_a_depth_that_cannot_be_decoded_is_refused(bits: int) -> None:
    with pytest.raises(InvalidInput, match="it cannot be read"):
        drawn(tiff((WORD * 1023).astype(np.uint16), bits))


def test_greys_whose_white_nobody_knows_are_refused_with_what_they_are() -> None:
    with pytest.raises(InvalidInput, match=r"floating point from -2 to 1, and where white is nobody knows; save it"):
        drawn(tiff((WORD * 3 - 2).astype(np.float32), 32, sample_format=3))
    with pytest.raises(InvalidInput, match="signed integers from -100 to 0"):
        drawn(tiff((WORD * 100 - 100).astype(np.int16), 16, sample_format=2))
    with pytest.raises(InvalidInput, match=r"floating point from 0 to 1e\+06"):
        drawn(tiff((WORD * 1e6).astype(np.float32), 32, sample_format=3))
    with pytest.raises(InvalidInput, match="integers from 0 to 255000"):
        drawn(tiff((WORD * 255_000).astype(np.uint32), 32))


def test_a_grey_picture_with_associated_alpha_is_read() -> None:
    data = gzip.decompress((CASES / "grey_assoc_alpha.tif.gz").read_bytes())
    assert Image.open(io.BytesIO(data)).mode == "La"
    greys = drawn(data)
    assert greys.min() < 10  # the word
    assert np.median(greys) == 255  # the ground


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "LAB", "LA", "RGBA", "PA", "RGBX"])
def test_a_picture_of_any_colour_space_shows_the_same_page(mode: str) -> None:
    image = page()
    if mode == "LAB":
        lightness, none = image, Image.new("L", image.size, 128)
        other = Image.merge("LAB", (lightness, none, none))
    elif mode == "CMYK":
        none = Image.new("L", image.size, 0)
        other = Image.merge("CMYK", (none, none, none, image.point(lambda grey: 255 - grey)))
    else:
        other = image.convert("RGBA" if mode == "PA" else "P" if mode == "P" else mode).convert(mode)
    tolerance = {"LAB": 12, "1": 255, "P": 26, "PA": 26}.get(mode, 1)
    seen = np.asarray(to_rgb(other).convert("L"), int)
    assert np.abs(seen - np.asarray(image, int)).max() <= tolerance
    assert np.abs(seen - np.asarray(image, int)).mean() < 2


def test_a_palette_with_a_transparent_colour_is_laid_on_white() -> None:
    image = Image.new("P", (300, 120), 0)
    image.putpalette([0, 0, 0, 0, 0, 0, 250, 0, 0])
    image.paste(1, (10, 10, 50, 50))
    for form in ("PNG", "GIF"):
        greys = drawn(saved(image, form, transparency=0))
        assert (greys[100, 200], greys[20, 20]) == (255, 0)


# Many pixels.


def test_a_page_of_a3_at_600_dpi_is_scaled_to_what_a_page_may_have() -> None:
    with open_document(CASES / "a3_600dpi_g4.tif") as document:
        assert document.size(0) == document.page(0).size == (5942, 8413)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("exif", [1, 6])
def test_a_large_picture_looks_the_same_when_it_was_scaled_down(form: str, exif: int) -> None:
    image = page(1500, 600).convert("RGB")
    told = Image.Exif()
    told[0x0112] = exif
    with open_document(saved(image, form, exif=told), name="it", max_pixels=100_000) as document:
        size, seen = document.size(0), document.page(0)
    upright = image if exif == 1 else image.transpose(Image.Transpose.ROTATE_270)
    assert seen.size == size == fitting(*upright.size, 100_000)
    assert 95_000 < size[0] * size[1] <= 100_000
    small = upright.resize(size, Image.Resampling.HAMMING)
    assert np.abs(np.asarray(seen, int) - np.asarray(small, int)).mean() < 2


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "I;16", "F", "1"])
def test_strips_leave_no_seams(mode: str) -> None:
    noise = Image.effect_noise((700, 2000), 90)
    deep = (np.asarray(noise, np.float32) * 257).astype(np.uint16)
    picture = {"I;16": Image.fromarray(deep), "F": noise.convert("F")}.get(mode) or noise.convert(mode)
    size = (333, 951)
    whole = to_rgb(picture).resize(size, Image.Resampling.HAMMING)
    assert np.abs(np.asarray(scaled_rgb(picture, size, "white"), int) - np.asarray(whole, int)).max() <= 1


def test_a_picture_beyond_all_that_is_scaled_is_refused_from_its_header() -> None:
    data = saved(Image.new("1", (4000, 4000)), "PNG")
    with (
        open_document(data, name="it", max_pixels=1_000_000) as document,
        pytest.raises(InvalidInput, match="it has 4000 x 4000 pixels; the limit is 12 million"),
    ):
        document.size(0)


@pytest.mark.parametrize("mode", ["L", "RGB", "LA"])
def test_a_large_jpeg_2000_is_decoded_smaller_and_looks_the_same(mode: str) -> None:
    image = page(1600, 1200).convert(mode)
    with open_document(saved(image, "JPEG2000"), name="it", max_pixels=200_000) as document:
        seen = document.page(0)
    assert seen.size == fitting(*image.size, 200_000)
    small = to_rgb(image).resize(seen.size, Image.Resampling.HAMMING)
    assert np.abs(np.asarray(seen, int) - np.asarray(small, int)).mean() < 3


def test_a_large_picture_weighs_more_than_the_page_that_it_becomes() -> None:
    with open_document(saved(Image.new("CMYK", (4000, 3000)), "TIFF"), name="it", max_pixels=1_100_000) as document:
        width, height = document.size(0)
        assert document.weight(0) == 4000 * 3000 * 4 // 16 > width * height


# Damage.


def test_a_jpeg_without_its_last_bytes_is_read() -> None:
    with open_document(CASES / "j_trunc_10.jpg") as document:
        seen = document.draw(0)
    assert seen.truncated
    assert seen.warnings == ("the file is cut off or damaged; what could be decoded of the page was read",)
    assert np.asarray(seen.image).min() < 50


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "GIF"])
def test_of_half_a_picture_one_half_is_there_and_the_rest_is_white(form: str) -> None:
    image = Image.effect_noise((300, 400), 60).convert("RGB")
    data = saved(image, form, interlace=0)
    with open_document(data[: len(data) // 2], name="it") as document:
        seen = document.draw(0)
    assert seen.truncated
    assert seen.image.size == (300, 400)
    there, lost = slice(0, 100), slice(-60, None)
    if form == "BMP":  # which begins with the lowest row
        there, lost = slice(-100, None), slice(0, 60)
    if form == "GIF":
        image = image.quantize(256)
    assert np.abs(np.asarray(seen.image, int)[there] - np.asarray(image.convert("RGB"), int)[there]).mean() < 25
    assert np.asarray(seen.image)[lost].min() == 255


@pytest.mark.parametrize("part", [0.5, 0.9])
def test_of_a_tiff_in_strips_that_is_cut_off_the_strips_before_are_read(part: float) -> None:
    image, rows = page(400, 500), 50
    strips = [zlib.compress(image.crop((0, top, 400, top + rows)).tobytes()) for top in range(0, 500, rows)]
    count, begin = len(strips), 8 + 2 + 9 * 12 + 4  # where the lists of strips are: behind the directory
    sizes = [len(strip) for strip in strips]
    places = [begin + 8 * count + sum(sizes[:number]) for number in range(count)]
    entries = [(256, 400), (257, 500), (258, 8), (259, 8), (262, 1), (273, begin), (277, 1), (278, rows),
               (279, begin + 4 * count)]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 4, count if tag in (273, 279) else 1, to) for tag, to in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)
    data = head + struct.pack(f"<{2 * count}I", *places, *sizes) + b"".join(strips)
    assert (drawn(data) == np.asarray(image)).all()
    with open_document(data[: int(len(data) * part)], name="it") as document:
        seen = document.draw(0)
    there = sum(place + size <= len(data) * part for place, size in zip(places, sizes, strict=True))
    greys = np.asarray(seen.image.convert("L"))
    assert seen.truncated
    assert 0 < there < count
    assert (greys[: there * rows] == np.asarray(image)[: there * rows]).all()
    assert (greys[there * rows :] == 255).all()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "it is a JPEG XL picture, which is not read here; save it as PDF"),
        (b"PK\x03\x04" + bytes(26) + b"word/document.xml", "an office document or a book, which is not read here"),
        (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "a drawing in SVG, which is not read here"),
        (saved(page(), "WEBP")[:-50], "a WebP picture that is cut off or damaged; get it again"),
        (saved(page(), "TIFF")[:6] + b"\xff" * 40, "a TIFF, or a camera's raw picture, that is cut off or damaged"),
    ],
)
def test_a_refusal_names_what_the_file_is(data: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        drawn(data)


@pytest.mark.parametrize("form", ["ICO", "DIB", "DDS", "XBM", "MSP"])
def test_older_formats_that_pillow_reads_are_read(form: str) -> None:
    image = page(200, 120).convert("RGBA" if form == "ICO" else "1" if form in ("XBM", "MSP") else "RGB")
    greys = drawn(saved(image, form, sizes=[image.size]) if form == "ICO" else saved(image, form))
    assert np.abs(greys - np.asarray(image.convert("L"), int)).max() <= 2


def test_a_picture_of_which_nothing_is_left_is_refused() -> None:
    for form in ("JPEG", "PNG"):
        data = saved(Image.effect_noise((300, 400), 60), form)
        start = data.index(b"\xff\xda") + 10 if form == "JPEG" else data.index(b"IDAT") + 4
        with open_document(data[:start], name="it") as document, pytest.raises(InvalidInput, match="it cannot be read"):
            document.page(0)


def test_what_libraries_say_of_a_file_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    data = saved(page(), "TIFF", dpi=(300, 300))
    place = data.index(struct.pack("<HHI", 296, 3, 1))  # the unit of the resolution
    with open_document(data[:place] + struct.pack("<HHI", 296, 3, 2) + data[place + 8 :], name="it") as document:
        said = document.draw(0).warnings
    assert len(said) == 1
    assert said[0].startswith("the library that decodes it says: Metadata Warning, tag 296 had too many entries")
    assert "\n" not in said[0]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "group4"])
def test_of_a_tiff_that_breaks_off_the_pages_before_are_read_and_say_so(compression: str) -> None:
    first, *others = [Image.effect_noise((200, 100), 60).convert("1") for _ in range(4)]
    data = saved(first, save_all=True, append_images=others, compression=compression)
    with open_document(data[: _page_list(data, 3) - 1], name="it") as document:
        assert document.page_count == 3
        for index, page_there in enumerate([first, *others][:3]):
            seen = document.draw(index)
            assert np.array_equal(np.asarray(seen.image.convert("1")), np.asarray(page_there))
            assert "the file is cut off or damaged: what may come after page 3 is lost" in seen.warnings
    with open_document(data, name="it") as document:
        assert (document.page_count, document.draw(3).warnings) == (4, ())


def _page_list(data: bytes, page_number: int) -> int:
    """Where a TIFF's list of tags of a page, counted from 0, begins."""
    place: int
    (place,) = struct.unpack_from("<I", data, 4)
    for _ in range(page_number):
        (count,) = struct.unpack_from("<H", data, place)
        (place,) = struct.unpack_from("<I", data, place + 2 + 12 * count)
    return place


def test_what_a_library_says_of_a_file_that_it_cannot_decode_is_in_the_refusal() -> None:
    data = bytearray(saved(page(), compression="tiff_lzw"))
    place = data.index(struct.pack("<HHI", 259, 3, 1))  # the tag of the compression
    data[place + 8 : place + 10] = struct.pack("<H", 50001)  # WebP, which libtiff is built without or finds broken
    with open_document(bytes(data), name="it") as document, pytest.raises(InvalidInput) as refused:
        document.draw(0)
    assert "it cannot be read (" in str(refused.value)
    assert "get it again, or save it as PNG; the library that decodes it says: " in str(refused.value)


def test_what_is_said_to_programmers_is_no_warning_of_a_page() -> None:
    program = """if True:
        import json, os, warnings
        from runtime.documents.mutters import Mutters
        answers = os.fdopen(os.dup(1), "w")
        mutters = Mutters()
        open(os.devnull)  # which nobody closes
        warnings.warn("it is old", DeprecationWarning)
        warnings.warn("it is odd")
        json.dump(mutters.taken(), answers)
    """
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) == ["the library that decodes it says: it is odd"]


MUTTERING = """
import json, os
from runtime.documents.mutters import Mutters
answers = os.fdopen(os.dup(1), "w")
mutters = Mutters()
os.write(2, b"TIFFReadDirectory: Warning, Unknown field with tag 65000.\\n")
os.write(1, b"and a word from one that prints\\n")
few, none = mutters.taken(), mutters.taken()
for _ in range(20_000):
    try:
        os.write(2, b"JPEGLib: Warning, it is full\\n")
    except BlockingIOError:
        pass
json.dump([few, none, mutters.taken()], answers)
"""


@pytest.mark.skipif(os.name == "nt", reason="a pipe that does not wait needs POSIX")
def test_what_c_libraries_write_is_heard_and_never_waits() -> None:
    ended = subprocess.run([sys.executable, "-c", MUTTERING], capture_output=True, text=True, check=True)
    few, none, many = json.loads(ended.stdout)
    assert few == ["the library that decodes it says: Unknown field with tag 65000 (and 1 more such line)"]
    assert none == []
    assert many == ["the library that decodes it says: it is full"]
    assert ended.stderr == ""
