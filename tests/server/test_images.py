"""Images from data: URLs: formats, limits that hold before decoding, damage."""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import zlib
from collections.abc import Iterator

import pytest
from PIL import Image

from runtime.documents import IMAGE_FORMATS, Workers
from server.api_errors import ApiError
from server.fetch import Fetcher
from server.http.admission import Admission, Capacity
from server.http.images import ImageReader
from tests.server.conftest import MakeService, chat, data_url, written

# Those that Pillow writes in any size and in colours.
FORMATS = [form for form in IMAGE_FORMATS if form not in ("ICO", "ICNS", "PSD", "SUN", "XBM", "MSP")]
WORKERS = Workers(2)
READER = ImageReader(Fetcher("off"), WORKERS, max_bytes=1 << 20, max_pixels=1_000_000)


@pytest.fixture(scope="module", autouse=True)
def _end_workers() -> Iterator[None]:
    yield
    WORKERS.close()


def encode(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def read(url: str, reader: ImageReader = READER) -> Image.Image:
    with reader.open([url]).decoded(lambda: False) as (image,):
        return image


def refused(url: str, status: int, reader: ImageReader = READER) -> str:
    with pytest.raises(ApiError) as caught:
        read(url, reader)
    assert caught.value.status_code == status
    return caught.value.message


def png_header(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG that says it is large and holds little."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read(form: str) -> None:
    original = Image.linear_gradient("L").resize((31, 17)).convert("RGB")
    image = read(data_url(original, form))
    assert image.size == (31, 17)
    assert image.convert("RGB").getpixel((0, 0)) != image.convert("RGB").getpixel((30, 16))


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP"])
def test_the_first_frame_of_several_is_read(form: str) -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], lossless=True)
    red, _, blue = read(encode(buffer.getvalue())).convert("RGB").getpixel((4, 4))  # type: ignore[misc]
    assert red > 200 > 50 > blue


def test_an_image_is_turned_upright_once() -> None:
    image = Image.new("RGB", (20, 10))
    image.paste("white", (0, 0, 10, 10))  # the left half, which is the upper one of the picture turned by 90 degrees
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    url = encode(buffer.getvalue())
    upright = read(url)
    assert READER.open([url]).sizes == [upright.size] == [(10, 20)]
    assert 0x0112 not in upright.getexif()
    assert (upright.getpixel((5, 2)), upright.getpixel((5, 17))) == ((255, 255, 255), (0, 0, 0))


def test_base64_is_read_as_clients_write_it() -> None:
    url = data_url()
    head, _, body = url.partition(",")
    for variant in (body.rstrip("="), "\n".join(body[i : i + 60] for i in range(0, len(body), 60)),
                    body.replace("+", "-").replace("/", "_")):  # fmt: skip
        assert read(f"{head},{variant}").size == (40, 30)
    for other in ("data:;base64,", "data:application/octet-stream;base64,", "DATA:image/png;charset=utf-8;BASE64,"):
        assert read(other + body).size == (40, 30)


@pytest.mark.parametrize(
    "url",
    [
        "", "data:", "data:image/png,abc", "data:image/png;base64", "data:image/png;base64,@@@@", "http:/x", "C:\\x",
        "file:///etc/passwd", "FILE:///etc/passwd", "/etc/passwd", "../x.png", "javascript:1", "about:blank", "iVBORw0",
    ],
)  # fmt: skip
def test_what_is_no_image_url_is_refused(url: str) -> None:
    refused(url, 400)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0\x08\0\0\0", b"BM"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_image_is_refused(data: bytes) -> None:
    assert "0x" not in refused(encode(data), 400)


IN_PART = ("JPEG", "PNG", "BMP", "DIB", "GIF", "PPM", "PCX", "SGI")  # their decoders give what is there


@pytest.mark.parametrize("form", [form for form in FORMATS if form not in (*IN_PART, "TIFF")])
def test_truncated_files_that_are_decoded_as_a_whole_are_refused(form: str) -> None:
    data = written(Image.effect_noise((200, 200), 50).convert("RGB"), form)
    for part in (0.3, 0.9):
        refused(encode(data[: int(len(data) * part)]), 400)


@pytest.mark.parametrize("form", IN_PART)
def test_of_truncated_files_what_is_there_is_read_and_the_answer_says_so(form: str, make_service: MakeService) -> None:
    data = written(Image.effect_noise((200, 200), 50).convert("RGB"), form)
    for part in (0.3, 0.9):
        answer = make_service().post(chat(url=encode(data[: int(len(data) * part)])))
        assert answer.status_code == 200, answer.text
        assert answer.json["ocr"]["truncated"] is True
        assert answer.json["ocr"]["warnings"] == [
            "image 1: the file is cut off or damaged; what could be decoded of the page was read"
        ]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_never_raise_anything_else() -> None:
    for form in FORMATS:
        whole = written(Image.effect_noise((40, 40), 50).convert("RGB"), form)
        for position in range(0, min(len(whole), 200), 3):
            data = bytearray(whole)
            data[position] ^= 0xFF
            with contextlib.suppress(ApiError):
                read(encode(bytes(data)))


def test_other_formats_are_refused_even_where_pillow_reads_them() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "TGA")
    assert "PNG, JPEG" in refused(encode(buffer.getvalue()), 400)


@pytest.mark.parametrize("size", [(12_001, 1000), (30_000, 30_000), (2**31 - 1, 2**31 - 1), (1, 12_000_001)])
def test_too_many_pixels_are_refused_from_the_header(size: tuple[int, int]) -> None:
    with pytest.raises(ApiError) as caught:
        READER.open([encode(png_header(*size))])  # which decodes nothing
    assert caught.value.status_code == 413
    assert "pixels" in caught.value.message


def test_an_image_with_a_few_times_too_many_pixels_is_scaled_down() -> None:
    assert read(data_url(Image.new("L", (2000, 1500)), "PNG")).size == (1154, 866)


def test_a_bomb_in_a_small_file_is_refused() -> None:
    bomb = png_header(20_000, 20_000, b"\0" * 1_000_000)
    assert len(bomb) < 2000
    refused(encode(bomb), 413)


def test_too_many_bytes_are_refused_before_they_are_decoded() -> None:
    assert "1 MiB" in refused("data:image/png;base64," + "A" * (2 << 20), 413)


def test_remote_images_can_be_switched_off() -> None:
    assert "switched off" in refused("https://example.com/a.png", 400)


# Many pixels in small files.


def test_the_images_of_a_request_have_a_limit_together() -> None:
    url = data_url(Image.new("L", (1000, 900)))
    with READER.open([url, url]).decoded(lambda: False) as images:
        assert len(images) == 2
    with pytest.raises(ApiError) as caught:
        READER.open([url, url, url])
    assert caught.value.status_code == 413
    assert "2 million pixels in all" in caught.value.message


def test_requests_wait_for_each_others_pixels_and_give_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.http.images.PATIENCE", 0.05)
    house = Admission(Capacity(pixels=1_000_000))
    reader = ImageReader(Fetcher("off"), WORKERS, max_pixels=1_000_000, admission=house)
    url = data_url(Image.new("L", (800, 800)))
    with reader.open([url]).decoded(lambda: False):
        assert house.held("pixels") == 640_000
        assert "try again later" in refused(url, 503, reader)
    with reader.open([url]).decoded(lambda: False):
        refused(url, 503, reader)
    half = io.BytesIO()
    Image.effect_noise((800, 800), 50).save(half, "WEBP")
    refused(encode(half.getvalue()[:1000]), 400, reader)  # what it took comes back
    assert house.held("pixels") == 0


def test_pictures_that_wait_for_a_model_hold_no_pixels() -> None:
    house = Admission(Capacity(pixels=1_000_000))
    reader = ImageReader(Fetcher("off"), WORKERS, max_pixels=1_000_000, admission=house)
    url = data_url(Image.new("L", (800, 800)))
    waiting = [reader.open([url]) for _ in range(5)]
    assert house.held("pixels") == 0
    with waiting[0].decoded(lambda: False):
        assert house.held("pixels") == 640_000
    for pictures in waiting:
        pictures.close()


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_image_with_damaged_exif_is_read(form: str, make_service: MakeService) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "white").save(buffer, form, exif=b"Exif\0\0garbage, no TIFF header")
    answer = make_service().post(chat(url=encode(buffer.getvalue()), ocr={"boxes": True}))
    assert answer.status_code == 200, answer.text
    assert answer.json["ocr"]["pages"] == [{"page": 1, "width": 40, "height": 30}]
