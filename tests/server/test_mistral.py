"""/v1/ocr and /v1/files: documents in Mistral's form, their pages, figures and tables, uploads and signed addresses."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from runtime.requests import Request
from server.fetch import Fetcher
from server.http.mistral import files
from server.http.mistral.files import FileStore
from server.writers.tables import html_rows, pipe_rows, take_out, to_html, to_pipes
from tests.pdfs import encrypted, scanned_pdf, text_pdf
from tests.server.conftest import MakeService, Service, data_url
from tests.server.document_requests import file_url, number_of, numbered
from tests.server.fake import Step

FIGURE = "<|ref|>image<|/ref|><|det|>[[0, 0, 499, 499]]<|/det|>\n"
SMALL = "<|ref|>image<|/ref|><|det|>[[900, 900, 910, 910]]<|/det|>\n"
TITLE = "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 99]]<|/det|>\n# Page "


def page_text(request: Request) -> Iterable[Step]:
    return [TITLE, f"{number_of(request)}\n\n", FIGURE, "\n", SMALL, "\nThe end."]


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(script=page_text)


ONE, THREE = numbered(1), numbered(3)


def ask(service: Service, document: dict[str, Any] | None = None, **more: Any) -> Any:
    document = {"document_url": file_url(THREE)} if document is None else document
    body = {"model": "deepseek-ocr", "document": document, **more}
    return service.client.simulate_post("/v1/ocr", json=body)


def form(data: bytes, name: str = "a.pdf", purpose: str = "ocr") -> dict[str, Any]:
    """A multipart body and its header."""
    boundary = "x9x9x9"
    parts = [
        f'Content-Disposition: form-data; name="purpose"\r\n\r\n{purpose}'.encode(),
        f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + data,
    ]
    body = b"".join(b"--x9x9x9\r\n" + part + b"\r\n" for part in parts) + b"--x9x9x9--\r\n"
    return {"body": body, "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"}}


def upload(service: Service, data: bytes, key: str = "") -> Any:
    made = form(data)
    if key:
        made["headers"]["Authorization"] = f"Bearer {key}"
    return service.client.simulate_post("/v1/files", **made)


def error(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = result.json["error"]
    return found


@pytest.mark.parametrize("size", [(612, 792), (2384, 3370), (6000, 9000)])
def test_pixels_and_dots_per_inch_give_the_size_of_the_sheet(size: tuple[int, int], service: Service) -> None:
    (page,) = ask(service, {"document_url": file_url(text_pdf(["a sheet"], size))}).json["pages"]
    told = page["dimensions"]
    assert isinstance(told["dpi"], int)
    inches = (told["width"] / told["dpi"], told["height"] / told["dpi"])
    assert inches == pytest.approx((size[0] / 72, size[1] / 72), rel=0.02)


def test_a_pictures_dots_per_inch_are_the_files(service: Service) -> None:
    scan = io.BytesIO()
    Image.new("RGB", (600, 300), "white").save(scan, "PNG", dpi=(300, 300))
    (page,) = ask(service, {"image_url": file_url(scan.getvalue(), "image/png")}).json["pages"]
    assert page["dimensions"] == {"dpi": 300, "width": 600, "height": 300}


def test_a_document_comes_back_in_mistrals_form(service: Service) -> None:
    answer = ask(service, pages=[2, 0]).json
    assert set(answer) == {"pages", "model", "usage_info", "document_annotation", "ocr"}
    assert [page["index"] for page in answer["pages"]] == [0, 2]
    assert answer["model"] == "deepseek-ocr"
    assert answer["usage_info"] == {"pages_processed": 2, "doc_size_bytes": len(THREE)}
    first, third = answer["pages"]
    assert first["dimensions"] == {"dpi": 144, "height": 50, "width": 101}
    assert first["markdown"] == "# Page 1\n\n![img-0.jpeg](img-0.jpeg)\n\n![img-1.jpeg](img-1.jpeg)\n\nThe end."
    assert [image["id"] for image in third["images"]] == ["img-2.jpeg", "img-3.jpeg"]
    corners = ("top_left_x", "top_left_y", "bottom_right_x", "bottom_right_y")
    assert [third["images"][0][name] for name in corners] == [0, 0, int(499 * 103 / 999), int(499 * 50 / 999)]
    assert third["images"][0]["image_base64"] is None
    assert "tables" not in first
    assert "blocks" not in first
    # An image alone is read as the model's default task, to the end of the page.
    requests = service.source.models["deepseek-ocr"].requests
    assert {request.prompt for request in requests} == {"<image>\n<|grounding|>Convert the document to markdown."}
    assert {request.settings.max_new_tokens for request in requests} == {8192}


def test_figures_are_cut_out_limited_and_sorted_by_size(make_service: MakeService) -> None:
    service = make_service(script=page_text)
    picture = Image.new("RGB", (101, 50), "white")
    picture.paste("red", (0, 0, 50, 24))
    pdf = {"type": "document_url", "document_url": file_url(scanned_pdf([picture]))}
    (page,) = ask(service, pdf, include_image_base64=True, image_min_size=5).json["pages"]
    (image,) = page["images"]
    head, _, data = image["image_base64"].partition(",")
    assert head == "data:image/jpeg;base64"
    cut = Image.open(io.BytesIO(base64.b64decode(data)))
    assert cut.size == (int(499 * 101 / 999), int(499 * 50 / 999))
    red, green, _ = cut.getpixel((20, 10))  # type: ignore[misc]
    assert red > 200
    assert green < 60
    assert page["markdown"] == "# Page 1\n\n![img-0.jpeg](img-0.jpeg)\n\nThe end."  # the small one has no link
    limited = ask(service, image_limit=1).json["pages"]
    assert [len(page["images"]) for page in limited] == [1, 0, 0]


def test_blocks_are_the_places_that_the_answer_names(service: Service) -> None:
    page = ask(service, include_blocks=True, pages="1").json["pages"][0]
    assert [(block["type"], block["content"]) for block in page["blocks"]] == [
        ("title", "# Page 2"), ("image", ""), ("image", "The end."),
    ]  # fmt: skip
    assert [block.get("image_id") for block in page["blocks"]] == [None, "img-0.jpeg", "img-1.jpeg"]


HTML = "<table><tr><th>a</th><th>b</th></tr><tr><td>1 &lt; 2</td><td>x|y</td></tr></table>"
PIPES = "| a | b |\n| --- | --- |\n| 1 < 2 | x\\|y |"


def test_tables_are_taken_out_in_the_form_that_is_asked_for(make_service: MakeService) -> None:
    service = make_service(script=lambda request: [f"Before\n\n{PIPES}\n\n", f"between\n\n{HTML}", "\n\nafter"])
    document = {"document_url": file_url(ONE)}
    for asked, content in (("html", HTML), ("markdown", PIPES)):
        end = {"html": "html", "markdown": "md"}[asked]
        (page,) = ask(service, document, table_format=asked).json["pages"]
        links = [f"[tbl-{number}.{end}](tbl-{number}.{end})" for number in (0, 1)]
        assert page["markdown"] == f"Before\n\n{links[0]}\n\nbetween\n\n{links[1]}\n\nafter"
        assert [table["format"] for table in page["tables"]] == [asked, asked]
        assert {table["content"] for table in page["tables"]} == {content}
    (page,) = ask(service, document).json["pages"]
    assert page["markdown"] == f"Before\n\n{PIPES}\n\nbetween\n\n{HTML}\n\nafter"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("<table><tr><td>a<td>b</tr></table>", [["a", "b"]]),
        (
            "<table><tr><td rowspan=2>a</td><td colspan='2'>b</td></tr><tr><td>c</td><td>d<br>e</td></tr></table>",
            [["a", "b", ""], ["", "c", "d e"]],
        ),
        ("<TABLE><tr><td></td><td colspan=x>1</td></tr></TABLE>", [["", "1"]]),
        ("<table></table>", []),
    ],
)
def test_cells_of_html_tables_stand_where_they_belong(text: str, rows: list[list[str]]) -> None:
    assert html_rows(text) == rows


def test_tables_survive_the_way_there_and_back() -> None:
    rows = [["a", "b | c"], ["1", ""], ["<x>", "&"]]
    assert pipe_rows(to_pipes(rows)) == rows
    assert html_rows(to_html(rows)) == rows
    assert take_out("a | b\nno table\n\n<table> unclosed", "html", lambda table: "T") == (
        "a | b\nno table\n\n<table> unclosed"
    )
    assert take_out("x\na | b\n-|-\n1 | 2\ny", "html", lambda table: "T") == "x\nT\ny"


@pytest.mark.parametrize(
    "document",
    [
        {"type": "image_url", "image_url": data_url(Image.new("RGB", (101, 50)))},
        {"type": "image_url", "image_url": {"url": data_url(Image.new("RGB", (101, 50)))}},
        {"type": "document_url", "document_url": data_url(Image.new("RGB", (101, 50)), "JPEG"), "document_name": "x"},
        {"type": "file", "file": file_url(ONE)},
        {"document_url": file_url(ONE)},
    ],
)
def test_a_document_may_stand_in_any_of_mistrals_fields(service: Service, document: dict[str, Any]) -> None:
    (page,) = ask(service, document).json["pages"]
    assert page["markdown"].startswith("# Page 1")


@pytest.mark.parametrize("model", ["mistral-ocr-latest", "mistral-ocr-2505", "mistral-ocr", None])
def test_mistrals_names_mean_the_model_that_the_server_was_started_for(make_service: MakeService, model: Any) -> None:
    service = make_service(script=page_text, model="tiny-ocr")
    answer = ask(service, model=model).json
    assert answer["model"] == "tiny-ocr"
    assert service.source.loads == ["tiny-ocr"]
    assert error(ask(service, model="mistral-large"))["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("more", "status", "param", "words"),
    [
        ({"pages": [7]}, 400, "pages", "page 7 (counted from 0) is beyond the end"),
        ({"pages": "1-x"}, 400, "pages", "counted from 0"),
        ({"pages": [-1]}, 400, "pages", "counted from 0"),
        ({"document": {}}, 400, "document", "needs one of document_url"),
        ({"document": {"document_url": "x", "file_id": "y"}}, 400, "document", "document_url and file_id"),
        ({"document": {"document_url": "/etc/passwd"}}, 400, "document", "http, https or data: URLs"),
        ({"document": {"document_url": "http://127.0.0.1/a.pdf"}}, 400, "document", "not on the public internet"),
        ({"document": {"document_url": "data:application/pdf;base64,!!!"}}, 400, "document_url", "base64"),
        ({"document": {"document_url": file_url(b"nonsense")}}, 400, "document", "not a"),
        ({"document": {"document_url": file_url(encrypted(text_pdf(["a"]), "x"))}}, 400, "document", "encrypted"),
        ({"document": {"type": "file", "file_id": "file-0"}}, 404, "file_id", "kept for an hour"),
        ({"model": "nope"}, 404, "model", "known models"),
        ({"task": "nope"}, 400, "task", "its tasks are"),
        ({"table_format": "xlsx"}, 400, "table_format", "markdown"),
        ({"document_annotation_format": {"type": "json_schema"}}, 400, "document_annotation_format", "not supported"),
        ({"confidence_scores_granularity": "word"}, 400, "confidence_scores_granularity", "not supported"),
        ({"stream": True}, 400, "stream", "not supported"),
        ({"image_limit": -1}, 400, "image_limit", "greater"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_with_the_clients_own_field(
    service: Service, more: dict[str, Any], status: int, param: str, words: str
) -> None:
    result = ask(service, **more)
    assert (result.status_code, error(result)["param"]) == (status, param), result.text
    assert words in error(result)["message"]
    assert service.application.in_flight.present == 0


def test_a_page_that_fails_says_so_and_leaves_no_text(make_service: MakeService) -> None:
    def script(request: Request) -> Iterable[Step]:
        if number_of(request) == 2:
            raise RuntimeError("broken")
        return ["fine"]

    answer = ask(make_service(script=script)).json
    assert [page["markdown"] for page in answer["pages"]] == ["fine", "", "fine"]
    assert answer["pages"][1]["error"] == "the model failed on this page"
    assert "page 2: the model failed" in answer["ocr"]["warning"]
    broken = ask(make_service(script=lambda request: [1 / 0]))  # type: ignore[list-item]
    assert broken.status_code == 500


def test_a_public_address_is_fetched(make_service: MakeService) -> None:
    class Canned(Fetcher):
        def fetch(self, url: str, deadline: float | None = None) -> bytes:
            assert url == "https://example.com/a.pdf"
            return ONE

    service = make_service(script=page_text, fetcher=Canned())
    (page,) = ask(service, {"document_url": "https://example.com/a.pdf"}).json["pages"]
    assert page["markdown"].startswith("# Page 1")


def test_the_number_of_pages_is_limited(make_service: MakeService) -> None:
    service = make_service(script=page_text, max_pages=2)
    result = ask(service)
    assert (result.status_code, error(result)["param"]) == (400, "pages")
    assert "3 pages in one request; the limit is 2" in error(result)["message"]
    assert len(ask(service, pages="0-1").json["pages"]) == 2


# Files.


def test_an_upload_is_read_by_its_id_and_by_its_signed_address_and_deleted(service: Service) -> None:
    client, made = service.client, upload(service, ONE).json
    assert (made["object"], made["size_bytes"], made["filename"], made["purpose"]) == (
        "file", len(ONE), "a.pdf", "ocr",
    )  # fmt: skip
    place = f"/v1/files/{made['id']}"
    assert client.simulate_get(place).json == made
    assert client.simulate_get("/v1/files").json["data"] == [made]
    assert client.simulate_get(f"{place}/content").content == ONE
    url = client.simulate_get(f"{place}/url", query_string="expiry=1").json["url"]
    assert url.startswith("http://falconframework.org/v1/files/file-")
    for document in ({"type": "file", "file_id": made["id"]}, {"type": "document_url", "document_url": url}):
        assert ask(service, document).json["pages"][0]["markdown"].startswith("# Page 1")
    assert client.simulate_delete(place).json == {"id": made["id"], "object": "file", "deleted": True}
    assert client.simulate_get(place).status_code == 404
    # The address opens nothing any more, and is fetched like any other: from public hosts only.
    assert ask(service, {"document_url": url.replace("falconframework.org", "127.0.0.1")}).status_code == 400


def test_a_file_belongs_to_the_key_that_brought_it_and_a_signed_address_needs_none(make_service: MakeService) -> None:
    service = make_service(script=page_text, api_keys=("one", "two"))
    client, one, two = service.client, {"Authorization": "Bearer one"}, {"Authorization": "Bearer two"}
    made = upload(service, ONE, "one").json
    place = f"/v1/files/{made['id']}"
    assert client.simulate_get(place, headers=two).status_code == 404
    assert client.simulate_delete(place, headers=two).status_code == 404
    assert client.simulate_get("/v1/files", headers=two).json["data"] == []
    body = {"document": {"type": "file", "file_id": made["id"]}, "model": None}
    assert client.simulate_post("/v1/ocr", json=body, headers=two).status_code == 404
    assert client.simulate_post("/v1/ocr", json=body, headers=one).status_code == 200
    parts = urlsplit(client.simulate_get(f"{place}/url", headers=one).json["url"])
    assert client.simulate_get(parts.path, query_string=parts.query).content == ONE
    for wrong in ("", parts.query[:-1], parts.query.replace("expires=", "expires=9")):
        assert client.simulate_get(parts.path, query_string=wrong).status_code == 401
    assert client.simulate_get(place, query_string=parts.query).status_code == 401
    assert client.simulate_get("/v1/models", query_string=parts.query).status_code == 401


def test_files_go_after_an_hour_and_signed_addresses_when_they_say() -> None:
    now = [1000.0]
    store = FileStore(100, clock=lambda: now[0])
    file = store.add("me", "a", "ocr", b"x" * 60)
    query = store.sign(file, 10.0)
    url = f"http://x/v1/files/{file.id}/content?expires={query['expires']}&signature={query['signature']}"
    assert store.signed_url(url) is file
    now[0] += 11
    assert store.signed_url(url) is None
    assert store.get(file.id, "me") is file
    with pytest.raises(files.Unavailable):
        store.add("me", "b", "ocr", b"x" * 41)
    now[0] += files.KEEP_SECONDS
    with pytest.raises(files.ApiError):
        store.get(file.id, "me")
    store.add("me", "b", "ocr", b"x" * 100)


def test_uploads_have_limits_and_a_form(make_service: MakeService) -> None:
    service = make_service(max_image_mb=1, max_files_mb=1)
    assert upload(service, b"x" * (1 << 20)).status_code == 200
    full = upload(service, b"y")
    assert (full.status_code, error(full)["code"]) == (503, "files_full")
    assert upload(service, b"x" * ((1 << 20) + 1)).status_code == 413
    assert upload(service, b"").status_code == 400
    assert service.client.simulate_post("/v1/files", json={}).status_code == 415
    cut = form(b"data")
    cut["body"] = cut["body"][:-20]
    assert service.client.simulate_post("/v1/files", **cut).status_code == 400
