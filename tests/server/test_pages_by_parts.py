"""The task ``document`` through every door of the server, and PaddleX's /layout-parsing: a real detector's graph that
finds what it was told, and a scripted model that says which part it was shown."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tests.server.conftest as conftest
from models.family import OutputFilter
from models.layout.page_rules import PADDLEX
from models.layout.task import is_document
from models.paddleocr_vl.family import PaddleOcrVl
from models.settings import InferenceSettings
from runtime.layout import LayoutModel
from runtime.pages import PageReader
from runtime.requests import Generation, Request
from runtime.runtime_errors import EngineClosed
from server.fetch import Fetcher
from tests.detectors import write_detector
from tests.pdfs import scanned_pdf
from tests.server.conftest import MakeService, Service, chat, data_url, image_part
from tests.server.fake import ScriptedModel, Step

MODEL = "paddleocr-vl-1.5"
WIDTH, HEIGHT = 400, 600
PROMPTS = {"text": "<image>OCR:", "table": "<image>Table Recognition:", "formula": "<image>Formula Recognition:"}
# Each is as high as its number tells, in hundredths of the page.
FOUND = [
    ("doc_title", 0.04), ("text", 0.05), ("image", 0.06), ("table", 0.07), ("display_formula", 0.08), ("header", 0.09),
]  # fmt: skip
TEXTS = {
    24: "A title", 30: "one\ntwo", 42: "<fcel>1<fcel>2<nl>", 48: "\\[ x \\]", 54: "page head",
}  # fmt: skip
MARKDOWN = (
    "# A title\n\none\n\ntwo\n\n<!-- image [40, 180, 200, 216] -->\n\n"
    "<table><tr><td>1</td><td>2</td></tr></table>\n\n$$ x $$"
)


def says(request: Request) -> Iterable[Step]:
    (picture,) = request.images
    return [TEXTS.get(picture.height, f"height {picture.height}")]


class ScriptedPages(ScriptedModel):
    """Reads pages by their parts with a detector, as ``runtime.Model`` does."""

    detector: Path

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        rules = PADDLEX.change({"ink_only": False})
        self.pages = PageReader(lambda: LayoutModel.open(self.detector), lambda: self, PROMPTS, rules)

    def submit(self, request: Request) -> Generation:  # type: ignore[override]
        if is_document(request.prompt):
            if self.closed:
                raise EngineClosed("closed")
            return self.pages.submit(request)
        return super().submit(request)

    def filter_for(self, prompt: str, settings: InferenceSettings) -> OutputFilter:
        return PaddleOcrVl.output(prompt)


@pytest.fixture
def pages(make_service: MakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Service]:
    """Make a service whose PaddleOCR-VL has a detector that finds ``FOUND``."""
    found = [(label, (0.1, 0.1 * (i + 1), 0.5, 0.1 * (i + 1) + high), 0.9) for i, (label, high) in enumerate(FOUND)]
    folder = write_detector(tmp_path / "cache" / "models" / "pp-doclayout-v3" / "onnx" / "f32", found)
    monkeypatch.setattr(ScriptedPages, "detector", folder, raising=False)
    monkeypatch.setattr(conftest, "ScriptedModel", ScriptedPages)
    return lambda **options: make_service(**{"script": says, "model": MODEL, **options})


def page() -> str:
    return data_url(Image.new("RGB", (WIDTH, HEIGHT), "white"))


def ask(service: Service, **more: Any) -> Any:
    body = {"model": MODEL, "messages": [{"role": "user", "content": [image_part(page())]}], **more}
    return service.post(body)


def pdf(count: int) -> str:
    """Of blank pages, base64."""
    return base64.b64encode(scanned_pdf([Image.new("RGB", (WIDTH, HEIGHT), "white")] * count)).decode()


def parse(service: Service, path: str = "/layout-parsing", **more: Any) -> Any:
    body = {"file": page().partition(",")[2], "fileType": 1, **more}
    return service.client.simulate_post(path, json=body)


def test_a_page_without_a_prompt_is_read_by_its_parts_where_there_is_a_detector(pages) -> None:
    service = pages()
    answer = ask(service, ocr={"boxes": True}).json
    assert answer["choices"][0]["message"]["content"] == MARKDOWN
    assert answer["choices"][0]["finish_reason"] == "stop"
    boxes = answer["ocr"]["boxes"]
    assert [(box["order"], box["label"], box["kind"]) for box in boxes] == [
        (1, "doc_title", "title"), (2, "text", "text"), (3, "image", "figure"), (4, "table", "table"),
        (5, "display_formula", "formula"), (6, "header", "header"),
    ]  # fmt: skip
    assert boxes[0]["box"] == [40, 60, 200, 84]
    assert [block["text"] for block in answer["ocr"]["blocks"]] == [
        "A title", "one\n\ntwo", "", "<table><tr><td>1</td><td>2</td></tr></table>", "x", "page head",
    ]  # fmt: skip
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["ocr"]["timings"]["layout"] > 0
    assert answer["ocr"]["timings"]["blocks"] > 0
    models = {model["id"]: model for model in service.client.simulate_get("/v1/models").json["data"]}
    assert (models[MODEL]["tasks"][0], models[MODEL]["default_task"]) == ("document", "document")
    assert "document" not in models["deepseek-ocr"]["tasks"]


def test_element_tasks_and_known_prompts_are_as_they_were(pages) -> None:
    service = pages()
    assert ask(service, task="table").json["choices"][0]["message"]["content"] == f"height {HEIGHT}"
    assert service.post(chat("OCR:", MODEL, page())).json["choices"][0]["message"]["content"] == f"height {HEIGHT}"
    other = service.post(chat("What is on this page?", MODEL, page())).json
    assert other["choices"][0]["message"]["content"] == MARKDOWN
    assert other["ocr"]["prompt_ignored"]


def test_a_stream_gives_the_parts_in_order(pages) -> None:
    response = ask(pages(), stream=True, stream_options={"include_usage": True})
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    pieces = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(pieces) == MARKDOWN
    assert sum(bool(piece) for piece in pieces) == 5
    assert chunks[-1]["usage"]["completion_tokens"] == 5


def test_responses_and_mistrals_form_read_pages_by_their_parts_too(pages) -> None:
    service = pages()
    part = {"type": "input_image", "image_url": page()}
    body = {"model": MODEL, "input": [{"role": "user", "content": [part]}]}
    answer = service.post(body, "/v1/responses").json
    assert answer["output"][0]["content"][0]["text"] == MARKDOWN
    body = {"model": MODEL, "document": {"image_url": page()}, "include_image_base64": True, "include_blocks": True}
    (read,) = service.post(body, "/v1/ocr").json["pages"]
    assert read["markdown"] == MARKDOWN.replace("<!-- image [40, 180, 200, 216] -->", "![img-0.jpeg](img-0.jpeg)")
    (figure,) = read["images"]
    picture = Image.open(io.BytesIO(base64.b64decode(figure["image_base64"].partition(",")[2])))
    assert picture.size == (160, 36)
    assert [block["type"] for block in read["blocks"]] == ["title", "text", "image", "table", "equation", "header"]


def test_pages_of_a_document_are_read_by_their_parts_and_give_their_pixels_back(pages) -> None:
    service = pages()
    url = f"data:application/pdf;base64,{pdf(3)}"
    content = [{"type": "file", "file": {"file_data": url}}]
    answer = service.post({"model": MODEL, "messages": [{"role": "user", "content": content}], "ocr": {"boxes": True}})
    assert [(page["page"], page["finish_detail"]) for page in answer.json["ocr"]["pages"]] == [
        (1, "eos"), (2, "eos"), (3, "eos"),
    ]  # fmt: skip
    assert [box["page"] for box in answer.json["ocr"]["boxes"]] == [1] * 6 + [2] * 6 + [3] * 6
    assert set(service.application.admission.kinds().values()) == {0.0}


def test_a_part_that_is_cut_or_fails_is_told_and_the_page_is_whole(pages) -> None:
    def script(request: Request) -> Iterable[Step]:
        (picture,) = request.images
        if picture.height == 42:
            raise RuntimeError("out of luck")
        return ["text", ("length", "max_tokens")] if picture.height == 30 else ["x"]

    answer = ask(pages(script=script)).json
    assert (answer["choices"][0]["finish_reason"], answer["ocr"]["finish_detail"]) == ("stop", "eos")
    assert answer["ocr"]["blocks_not_whole"] == [
        {"page": 1, "block": 2, "detail": "max_tokens", "warning": "block 2 (text) was cut off by max_tokens"},
        {"page": 1, "block": 4, "detail": "error",
         "warning": "block 4 (table) could not be read: the model failed on this part"},
    ]  # fmt: skip
    assert "page 1, block 2 (text) was cut off by max_tokens" in answer["ocr"]["warning"]


def test_each_part_has_the_budget_of_its_vendor_unless_the_request_says_another(pages) -> None:
    service = pages()
    ask(service)
    ask(service, max_tokens=7)
    requests = service.source.models[MODEL].requests
    assert {request.settings.max_new_tokens for request in requests[:5]} == {4096}
    assert {request.settings.max_new_tokens for request in requests[5:]} == {7}
    assert {request.settings.family.get("max_pixels") for request in requests} == {1_003_520}


def test_without_its_detector_a_page_is_read_whole_and_the_command_is_told(make_service) -> None:
    service = make_service(script=says, model=MODEL)
    answer = ask(service).json
    assert answer["choices"][0]["message"]["content"] == f"height {HEIGHT}"
    assert "ocr-onnx export pp-doclayout-v3" in answer["ocr"]["note"]
    refused = ask(service, task="document")
    assert refused.status_code == 400
    assert "ocr-onnx export pp-doclayout-v3" in refused.json["error"]["message"]
    none = service.post({**chat("", "deepseek-ocr", page()), "task": "document"})
    assert 'layout = "v3"' in none.json["error"]["message"]


def test_several_images_are_no_page(pages) -> None:
    service = pages()
    content = [image_part(page()), image_part(page())]
    refused = service.post({"model": MODEL, "task": "document", "messages": [{"role": "user", "content": content}]})
    assert refused.status_code == 400
    assert "a page at a time" in refused.json["error"]["message"]


def test_the_entry_of_a_model_changes_single_rules(pages) -> None:
    text = f'[models.entries."{MODEL}"]\ntask = "document"\npage = {{ hidden = [], title_levels = false }}\n'
    service = pages(config_text=text)
    assert service.source.entry(MODEL).page == {"hidden": [], "title_levels": False}


# PaddleX's form.


def test_layout_parsing_answers_as_paddlex_does(pages) -> None:
    answer = parse(pages(), useDocOrientationClassify=False, useDocUnwarping=False, useChartRecognition=False).json
    assert (answer["errorCode"], answer["errorMsg"]) == (0, "Success")
    assert answer["logId"]
    (result,) = answer["result"]["layoutParsingResults"]
    path = "imgs/img_in_image_box_40_180_200_216.jpg"
    assert result["markdown"]["text"] == (
        '# A title\n\none\n\ntwo\n\n<div style="text-align: center;">'
        f'<img src="{path}" alt="Image" width="40%" /></div>\n\n'
        "<table border=1 style='margin: auto; word-wrap: break-word;'><tr>"
        "<td style='text-align: center; word-wrap: break-word;'>1</td>"
        "<td style='text-align: center; word-wrap: break-word;'>2</td></tr></table>\n\n$$ x $$"
    )
    picture = Image.open(io.BytesIO(base64.b64decode(result["markdown"]["images"][path])))
    assert picture.size == (160, 36)
    pruned = result["prunedResult"]
    assert (pruned["width"], pruned["height"], pruned["page_count"]) == (WIDTH, HEIGHT, 1)
    assert [(one["block_label"], one["block_order"]) for one in pruned["parsing_res_list"]] == [
        ("doc_title", 1), ("text", 2), ("image", None), ("table", None), ("display_formula", 3), ("header", None),
    ]  # fmt: skip
    assert pruned["parsing_res_list"][1]["block_content"] == "one\n\ntwo"
    assert pruned["parsing_res_list"][0]["block_bbox"] == [40, 60, 200, 84]
    assert pruned["layout_det_res"]["boxes"][3]["cls_id"] == 21
    assert pruned["layout_det_res"]["boxes"][3]["score"] == pytest.approx(0.9, abs=1e-3)
    assert pruned["model_settings"]["markdown_ignore_labels"] == list(PADDLEX.hidden)
    assert answer["result"]["dataInfo"] == {"width": WIDTH, "height": HEIGHT, "type": "image"}


def test_layout_parsing_takes_the_switches_of_its_clients(pages) -> None:
    service = pages()

    def text(**flags: Any) -> str:
        return str(parse(service, **flags).json["result"]["layoutParsingResults"][0]["markdown"]["text"])

    plain = text(prettifyMarkdown=False)
    assert plain == MARKDOWN.replace(
        "<!-- image [40, 180, 200, 216] -->", "![](imgs/img_in_image_box_40_180_200_216.jpg)"
    )
    assert text(prettifyMarkdown=False, markdownIgnoreLabels=["image"]).endswith("$$ x $$\n\npage head")
    assert "height 36" in text(prettifyMarkdown=False, useOcrForImageBlock=True)
    assert text(useLayoutDetection=False) == f"height {HEIGHT}"
    assert text(useLayoutDetection=False, promptLabel="table") == f"height {HEIGHT}"
    assert text(layoutThreshold=0.95) == ""
    drawn = parse(service, visualize=True).json["result"]["layoutParsingResults"][0]["outputImages"]["layout_det_res"]
    assert Image.open(io.BytesIO(base64.b64decode(drawn))).size == (WIDTH, HEIGHT)
    formatted = parse(service, formatBlockContent=True).json["result"]["layoutParsingResults"][0]["prunedResult"]
    assert formatted["parsing_res_list"][0]["block_content"] == "# A title"
    parse(service, maxNewTokens=9, temperature=0.0)
    assert service.source.models[MODEL].requests[-1].settings.max_new_tokens == 9


def test_layout_parsing_reads_pdfs_and_addresses_by_the_guarded_fetch(pages) -> None:
    answer = parse(pages(), file=pdf(2), fileType=0).json["result"]
    assert len(answer["layoutParsingResults"]) == 2
    assert (answer["dataInfo"]["type"], answer["dataInfo"]["numPages"]) == ("pdf", 2)
    refused = parse(pages(), file="http://127.0.0.1:9/page.png")
    assert (refused.status_code, refused.json["errorCode"]) == (400, 400)
    assert "127.0.0.1" in refused.json["errorMsg"]
    closed = parse(pages(fetcher=Fetcher("off", 1 << 20, 1.0)), file="https://example.com/a.png")
    assert closed.status_code == 400


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ({"file": "no base64!"}, 400, "neither base64 nor"),
        ({"file": base64.b64encode(b"words").decode()}, 400, "the file"),
        ({"fileType": 2}, 400, "fileType"),
        ({"useDocUnwarping": True}, 400, "useDocUnwarping True is not supported; leave it out or send false"),
        ({"layoutThreshold": {"text": 0.5}}, 400, "single labels"),
        ({"layoutThreshold": 7}, 400, "a number from 0 to 1"),
        ({"markdownIgnoreLabels": ["nothing"]}, 400, "a list of some of"),
        ({"temperature": 900.0}, 400, "temperature"),
        ({"model": "nobody"}, 404, "not known"),
        ({"promptLabel": "poem"}, 400, "promptLabel"),
    ],
)
def test_layout_parsing_refuses_in_paddlexs_form(pages, more: dict[str, Any], status: int, words: str) -> None:
    refused = parse(pages(), **more)
    assert refused.status_code == status
    assert refused.json.keys() == {"logId", "errorCode", "errorMsg"}
    assert refused.json["errorCode"] == status
    assert words in refused.json["errorMsg"]


def test_the_key_may_come_as_paddlexs_clients_send_it(pages) -> None:
    service = pages(api_keys=("secret",))
    body = {"file": page().partition(",")[2]}
    for scheme in ("token", "Bearer"):
        headers = {"Authorization": f"{scheme} secret"}
        assert service.client.simulate_post("/layout-parsing", json=body, headers=headers).status_code == 200
    refused = service.client.simulate_post("/layout-parsing", json=body, headers={"Authorization": "token wrong"})
    assert refused.status_code == 401


def test_a_file_without_a_detector_is_read_whole(make_service) -> None:
    service = make_service(script=says, model=MODEL)
    (result,) = parse(service).json["result"]["layoutParsingResults"]
    assert result["markdown"]["text"] == f"height {HEIGHT}"
    assert [one["block_label"] for one in result["prunedResult"]["parsing_res_list"]] == ["ocr"]
    refused = parse(service, useLayoutDetection=True)
    assert "ocr-onnx export pp-doclayout-v3" in refused.json["errorMsg"]
