"""What the page asks of the server: its files, documents as pictures, texts as HTML and files. No browser needed."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import docx
import openpyxl
import pypdf
import pytest
from falcon.testing import TestClient
from lxml import etree
from PIL import Image

import server.http.web
from runtime.documents import open_document
from server.http.web import downloads
from server.http.web.resources import FILES, POLICY
from tests.pdfs import text_pdf
from tests.server.conftest import MakeService, Service, make_service, service

__all__ = ["make_service", "service"]

STATIC = Path(server.http.web.__file__).parent / "static"


def _figure() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(buffer, "PNG")
    return buffer.getvalue()


def _pages(client: TestClient, content: bytes, query: str = "", **headers: str) -> Any:
    headers = {"Content-Type": "application/octet-stream", **headers}
    return client.simulate_post("/web/pages", query_string=query, body=content, headers=headers)


def _lines(answer: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


PAGE = {
    "text": "<|ref|>title<|/ref|><|det|>[[1, 1, 9, 9]]<|/det|>\n# Title\n"
    "<|ref|>image<|/ref|><|det|>[[1, 1, 9, 9]]<|/det|>\n",
    "boxes": [{"label": "title", "text": "# Title"}, {"label": "image", "text": ""}],
    "figures": [base64.b64encode(_figure()).decode()],
}


@pytest.mark.parametrize("name", ["", *(f"web/{name}" for name in FILES)])
def test_every_file_is_served_under_the_strict_policy(service: Service, name: str) -> None:
    answer = service.client.simulate_get(f"/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_policy_lets_nothing_inline_and_nothing_from_elsewhere() -> None:
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
        assert "style=" not in text


def test_the_files_are_all_that_the_folder_holds() -> None:
    assert {file.name for file in STATIC.iterdir()} == {*FILES, "index.html"}


def test_the_page_stays_small() -> None:
    files = list(STATIC.iterdir())
    assert sum(file.stat().st_size for file in files) < 150_000
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) < 1_500


def test_a_file_that_is_still_the_same_is_not_sent_again(service: Service) -> None:
    tag = service.client.simulate_get("/web/main.js").headers["etag"]
    assert service.client.simulate_get("/web/main.js", headers={"If-None-Match": tag}).status_code == 304


@pytest.mark.parametrize("name", ["../auth.py", "..%2fauth.py", "resources.py", "main.js.map", "%00"])
def test_nothing_else_is_served(service: Service, name: str) -> None:
    assert service.client.simulate_get(f"/web/{name}").status_code == 404


def test_the_page_is_open_and_its_questions_need_the_key(make_service: MakeService) -> None:
    client = make_service(api_keys=("secret",)).client
    assert client.simulate_get("/").status_code == 200
    assert client.simulate_get("/web/main.js").status_code == 200
    for path in ("/web/config", "/web/pages", "/web/render", "/web/download"):
        assert client.simulate_post(path).status_code == 401
        assert client.simulate_get(path).status_code == 401
    assert client.simulate_get("/web/config", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_no_web_leaves_the_api_alone(make_service: MakeService) -> None:
    client = make_service(web="off").client
    assert client.simulate_get("/").status_code == 404
    assert client.simulate_get("/v1/models").status_code == 200


def test_without_its_packages_the_page_says_how_to_get_them(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.http.web, "NEEDED", ("no_such_package",))
    client = make_service().client
    assert "pip install 'ocr-onnx[web]'" in client.simulate_get("/").text
    assert client.simulate_get("/web/config").status_code == 404


def test_the_settings_are_those_of_the_models_family_with_the_servers_defaults(make_service: MakeService) -> None:
    client = make_service(inference_flags={"max_new_tokens": 77}, max_new_tokens_limit=900).client
    told = client.simulate_get("/web/config", query_string="model=deepseek-ocr").json
    by_name = {setting["name"]: setting for setting in told["settings"]}
    assert by_name["max_new_tokens"]["default"] == 77
    assert by_name["max_new_tokens"]["limit"] == 900
    assert by_name["temperature"]["limit"] is None
    assert "base_size" in by_name
    assert told["text_tasks"] == ["locate"]
    other = client.simulate_get("/web/config", query_string="model=paddleocr-vl").json
    assert "base_size" not in {setting["name"] for setting in other["settings"]}


def test_an_unknown_model_is_named(service: Service) -> None:
    answer = service.client.simulate_get("/web/config", query_string="model=nonsense")
    assert answer.status_code == 404
    assert "nonsense" in answer.json["error"]["message"]


def test_pages_are_the_pixels_that_a_file_part_is_read_from(service: Service) -> None:
    pdf = text_pdf(["one", "two", "three"])
    head, *pages = _lines(_pages(service.client, pdf, "pages=2-3"))
    assert head == {"count": 3, "chosen": [2, 3]}
    assert [page["page"] for page in pages] == [2, 3]
    with open_document(pdf, name="x") as document:
        for page in pages:
            drawn = Image.open(io.BytesIO(base64.b64decode(page["image"].partition(",")[2])))
            assert drawn.tobytes() == document.page(page["page"] - 1).tobytes()


def test_a_long_document_comes_a_few_pages_at_a_time(service: Service) -> None:
    pdf = text_pdf([str(number) for number in range(20)], size=(100, 100))
    head, *first = _lines(_pages(service.client, pdf))
    assert len(head["chosen"]) == 20
    seen = [page["page"] for page in first]
    while len(seen) < 20:
        _, *more = _lines(_pages(service.client, pdf, f"skip={len(seen)}"))
        assert more
        seen += [page["page"] for page in more]
    assert seen == list(range(1, 21))


@pytest.mark.parametrize(
    ("content", "query", "status", "words"),
    [
        (b"", "", 400, "0 bytes"),
        (b"no document", "", 400, "documents are PDF"),
        (text_pdf(["x"]), "pages=7", 400, "page 7"),
        (text_pdf(["x"]), "pages=x", 400, "pages 'x'"),
        (text_pdf(["x"]), "skip=-1", 400, "skip"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_reason(
    service: Service, content: bytes, query: str, status: int, words: str
) -> None:
    answer = _pages(service.client, content, query)
    assert answer.status_code == status
    assert words in answer.json["error"]["message"]
    assert service.application.in_flight.present == 0


def test_a_page_of_another_origin_cannot_send_documents_without_leave(service: Service) -> None:
    answer = service.client.simulate_post("/web/pages", body=text_pdf(["x"]), headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    answer = service.client.simulate_post("/web/render", body=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415


def test_a_drawn_document_gives_its_place_back(service: Service) -> None:
    _pages(service.client, text_pdf(["x"]))
    assert service.application.in_flight.present == 0


def test_a_text_is_rendered(service: Service) -> None:
    answer = service.post(PAGE, "/web/render")
    assert "<h1>Title</h1>" in answer.json["html"]


def test_a_stream_tells_its_stages_when_it_is_asked_to(service: Service) -> None:
    from tests.server.conftest import chat

    def stages(**ocr: Any) -> list[str]:
        lines = service.post(chat(stream=True, ocr=ocr)).text.splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        return [chunk["ocr"]["stage"] for chunk in chunks if "stage" in chunk.get("ocr", {})]

    assert stages(progress=True) == ["reading"]
    assert stages() == []


def test_html_stands_alone_with_its_figures(service: Service) -> None:
    answer = service.post({"name": "a <b>", "format": "html", "pages": [PAGE]}, "/web/download")
    assert answer.headers["content-type"].startswith("text/html")
    assert "<title>a &lt;b&gt;</title>" in answer.text
    assert f'src="data:image/png;base64,{PAGE["figures"][0]}"' in answer.text


def test_a_word_file_has_headings_tables_formulas_and_figures(service: Service) -> None:
    table = "<table><tr><td rowspan=2>A</td><td colspan=2>B</td></tr><tr><td>c</td><td>d</td></tr></table>"
    second = {"text": f"- one\n- two\n\n{table}\n\n\\(\\frac{{a}}{{b}}\\)", "boxes": [], "figures": []}
    answer = service.post({"name": "a", "format": "docx", "pages": [PAGE, second]}, "/web/download")
    document = docx.Document(io.BytesIO(answer.content))
    filled = [paragraph for paragraph in document.paragraphs if paragraph.text.strip()]
    words = [(paragraph.style.name, paragraph.text) for paragraph in filled if paragraph.style]
    assert words == [("Heading 1", "Title"), ("List Bullet", "one"), ("List Bullet", "two")]
    assert len(document.inline_shapes) == 1
    assert [[cell.text for cell in row.cells] for row in document.tables[0].rows] == [["A", "B", "B"], ["A", "c", "d"]]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as parts:
        assert b"<m:f>" in parts.read("word/document.xml")


def test_a_zip_has_markdown_that_links_its_figures(service: Service) -> None:
    answer = service.post({"name": "../etc/x", "format": "zip", "pages": [PAGE]}, "/web/download")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as parts:
        image, text = parts.namelist()
        assert (image, text) == ("images/etc-x-p1-0.png", "etc-x.md")
        assert f"![]({image})" in parts.read(text).decode()
        assert parts.read(image) == _figure()


def test_figures_that_did_not_come_along_leave_no_link(service: Service) -> None:
    answer = service.post({"name": "x", "format": "zip", "pages": [{**PAGE, "figures": []}]}, "/web/download")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as parts:
        assert parts.read("x.md").decode() == "# Title\n"


def _page_picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (150, 200), "white").save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


TABLE = "<table><tr><td>item</td><td>007</td></tr></table>"
WHOLE = {  # of an answer: ``ocr`` says boxes and blocks as they stand here
    "text": f"# Title\n\nPlain words.\n\n{TABLE}", "page": 3, "width": 300, "height": 400, "picture": _page_picture(),
    "boxes": [{"label": "title", "text": "# Title", "box": [30, 20, 270, 60]}],
    "blocks": [
        {"kind": "title", "text": "Title", "box": [30, 20, 270, 60], "label": "title", "level": 1, "page": 3},
        {"kind": "text", "text": "Plain words.", "box": [30, 80, 270, 100], "label": "text", "page": 3},
        {"kind": "table", "text": TABLE, "box": [30, 150, 270, 300], "label": "table", "page": 3},
    ],
}  # fmt: skip


def _download(service: Service, form: str, *pages: dict[str, Any]) -> Any:
    return service.post({"name": "a", "format": form, "pages": pages or [WHOLE]}, "/web/download")


@pytest.mark.parametrize("form", ["pdf", "pdf-a"])
def test_a_searchable_pdf_has_the_words_where_they_stand(service: Service, form: str) -> None:
    answer = _download(service, form)
    assert answer.headers["content-type"] == "application/pdf"
    (page,) = pypdf.PdfReader(io.BytesIO(answer.content)).pages
    assert (page.mediabox.width, page.mediabox.height) == (150, 200)  # points, of 300 x 400 pixels
    assert len(page.images) == 1
    heights: dict[str, float] = {}

    def note(text: str, page_matrix: Any, matrix: Any, *_: Any) -> None:
        heights[text.strip()] = matrix[5] * page_matrix[3] + page_matrix[5]

    assert page.extract_text(visitor_text=note).split()[:3] == ["Title", "Plain", "words."]
    assert 200 - 60 / 2 < heights["Title"] < 200 - 20 / 2
    assert 200 - 100 / 2 < heights["Plain words."] < 200 - 80 / 2


def test_tables_places_and_texts_are_downloaded_as_read_writes_them(service: Service) -> None:
    book = openpyxl.load_workbook(io.BytesIO(_download(service, "xlsx").content))
    assert [[cell.value for cell in row] for row in book.worksheets[0].rows] == [["item", "007"]]
    assert _download(service, "csv").text.splitlines() == ["item,007"]
    for form, tag, name in (("hocr", "ocrx_word", "class"), ("alto", "Title", "CONTENT")):
        tree = etree.fromstring(_download(service, form).content)
        assert tree.xpath(f"//*[@{name}='{tag}']")
    line = json.loads(_download(service, "jsonl").text)
    assert (line["page"], line["blocks"][1]["box"]) == (3, [30, 80, 270, 100])
    assert json.loads(_download(service, "json").text)["pages"][0]["markdown"] == WHOLE["text"]
    assert "Plain words." in _download(service, "txt").text
    assert _download(service, "md").text.startswith("# Title")


def test_every_format_takes_pages_of_which_little_is_known(service: Service) -> None:
    odd = {"text": "Words.", "blocks": [{"kind": "text", "text": "Words.", "box": [9, 9, -3, 3]}], "page": 2}
    for form in downloads.FORMATS:
        picture = {"picture": _page_picture()} if form.startswith("pdf") else {}
        answer = _download(service, form, {"text": "Words.", **picture}, {**odd, **picture})
        assert answer.status_code == 200, (form, answer.text)
        assert answer.content or form == "csv"  # there is no table


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ({"picture": None}, "page 3 comes without its picture"),
        ({"picture": base64.b64encode(b"no picture").decode()}, "not a known format"),
        ({"picture": "%%"}, "picture must be base64"),
        ({"boxes": [{"label": "x", "text": "", "box": [1, 2, 3]}]}, "box"),
        ({"blocks": [{"kind": "nothing", "text": ""}]}, "kind"),
        ({"width": 10**9}, "width"),
    ],
)
def test_a_pdf_is_made_of_pictures_and_true_places_only(service: Service, page: dict[str, Any], words: str) -> None:
    answer = _download(service, "pdf", {**WHOLE, **page})
    assert answer.status_code == 400
    assert words in answer.json["error"]["message"]


def test_pages_of_the_same_number_are_refused(service: Service) -> None:
    answer = _download(service, "pdf", WHOLE, WHOLE)
    assert answer.status_code == 400
    assert "two pages have the same number" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "exe"}, "format 'exe'"),
        ({"pages": [{"text": "x", "figures": ["%%"]}]}, "base64"),
        ({"pages": 3}, "pages"),
    ],
)
def test_an_odd_download_is_refused(service: Service, change: dict[str, Any], words: str) -> None:
    answer = service.post({"name": "x", "format": "zip", "pages": [PAGE], **change}, "/web/download")
    assert answer.status_code == 400
    assert words in answer.json["error"]["message"]
