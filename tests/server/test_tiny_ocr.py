"""The built-in model over HTTP, as programs talk to it: what they add changes no reading, and a bad page is told."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from models.catalog import CATALOG
from tests.pdfs import scanned_pdf
from tests.server.conftest import ServerProcess
from tests.waiting import until
from tools.demo_page import PAGE_TEXT, demo_page

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(
    not (Path(CATALOG["tiny-ocr"].source) / "model.safetensors").is_file(),
    reason="the built-in model's weights are not in this checkout",
)

LINES = ("Paper and ink", "Total 42.50")
ATTACHED = '<attached_files>\n<file type="image" url="1" name="p.png"/>\n</attached_files>\n\n'
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    server = ServerProcess(["--model", "tiny-ocr", "--slots", "4"], tmp_path_factory.mktemp("tiny"))
    until(lambda: httpx.get(f"{server.url}/ready").status_code == 200, 180)
    yield server
    server.kill()


def drawn(mode: str = "RGB", blur: float = 0.0) -> Image.Image:
    """Two lines of type; dark on nothing where the mode has transparency."""
    ink = Image.new("L", (360, 130), 0)
    for number, line in enumerate(LINES):
        ImageDraw.Draw(ink).text((20, 20 + 45 * number), line, 255, font=ImageFont.load_default(30))
    if blur:
        ink = ink.filter(ImageFilter.GaussianBlur(blur))
    page = Image.new(mode, ink.size, (0, 0, 0, 0) if mode == "RGBA" else "white")
    page.paste("black", mask=ink) if mode == "RGB" else page.putalpha(ink)
    return page


def headed(lines: list[str]) -> Image.Image:
    """The first line as a heading: larger, and further from the others."""
    page = Image.new("RGB", (460, 300), "white")
    draw = ImageDraw.Draw(page)
    draw.text((30, 24), lines[0], "black", font=ImageFont.load_default(44))
    for number, line in enumerate(lines[1:]):
        draw.text((30, 98 + 36 * number), line, "black", font=ImageFont.load_default(24))
    return page


def part(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def as_responses(body: dict[str, Any]) -> dict[str, Any]:
    """The same request in the other API."""
    other = {**body, "input": body["messages"]}
    del other["messages"]
    if other.pop("logprobs", None):
        other["include"] = ["message.output_text.logprobs"]
    return other


def events(body: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]


def answers(server: ServerProcess, messages: list[Any], **more: Any) -> list[tuple[str, dict[str, Any], list[Any]]]:
    """Text, ``ocr`` and log-probabilities: chat plain and streamed, Responses plain and streamed."""
    body = {"model": "tiny-ocr", "messages": messages, "max_tokens": 200, **more}

    def post(path: str, sent: dict[str, Any]) -> httpx.Response:
        answer = httpx.post(f"{server.url}{path}", json=sent, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer

    found: list[tuple[str, dict[str, Any], list[Any]]] = []
    plain = post("/v1/chat/completions", body).json()
    choice = plain["choices"][0]
    found.append((choice["message"]["content"], plain["ocr"], (choice["logprobs"] or {"content": []})["content"]))
    chunks = events(post("/v1/chat/completions", {**body, "stream": True}).text)
    choices = [chunk["choices"][0] for chunk in chunks]
    told = [one for choice in choices for one in (choice["logprobs"] or {"content": []})["content"]]
    found.append(("".join(one["delta"].get("content") or "" for one in choices), chunks[-1]["ocr"], told))
    other = as_responses(body)
    whole = post("/v1/responses", other).json()
    content = whole["output"][0]["content"][0]
    found.append((content["text"], whole["ocr"], content["logprobs"]))
    steps = events(post("/v1/responses", {**other, "stream": True}).text)
    deltas = [step for step in steps if step["type"] == "response.output_text.delta"]
    final = steps[-1]["response"]
    told = [one for delta in deltas for one in delta["logprobs"]]
    assert told == final["output"][0]["content"][0]["logprobs"]
    found.append(("".join(delta["delta"] for delta in deltas), final["ocr"], told))
    return found


def test_what_programs_send_around_a_page_changes_nothing_that_is_read(server: ServerProcess) -> None:
    page = part(drawn())
    alone = answers(server, [user(page)])
    expected = alone[0][0]
    assert expected.split("\n")[0] == LINES[0]
    assert {one for one, _, _ in alone} == {expected}
    for messages in (
        [user(text("Free OCR."), page)],
        [SYSTEM, user(page, text("Free OCR."))],
        [user(text(ATTACHED), text("Free OCR."), page)],
        [user(page), user(text("Free OCR."))],
        [user(page, text("Free OCR.")), {"role": "assistant", "content": "x"}, user(text("Free OCR."))],
        [user(part(drawn("RGBA")), text("Free OCR."))],
    ):
        for read, ocr, _ in answers(server, messages):
            assert read == expected, messages
            assert "prompt_ignored" not in ocr
    for read, ocr, _ in answers(server, [SYSTEM, user(text("What does this picture say?"), page)]):
        assert (read, ocr["prompt_ignored"]) == (expected, True)


def test_a_conversation_without_a_picture_gets_a_sentence_and_no_confidence(server: ServerProcess) -> None:
    for read, ocr, _ in answers(server, [user(text("Generate a title for this chat."))]):
        assert (ocr["finish_detail"], "confidence" in ocr) == ("no_image", False)
        assert read.startswith("There is no picture")


def test_log_probabilities_are_told_alike_everywhere(server: ServerProcess) -> None:
    found = answers(server, [user(part(drawn()))], logprobs=True, top_logprobs=3)
    first = found[0][2]
    for read, ocr, told in found:
        assert bytes(byte for one in told for byte in one["bytes"]).decode().strip() == read
        assert [one["token"] for one in told] == [one["token"] for one in first]
        for one, other in zip(told, first, strict=True):
            assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)
            assert len(one["top_logprobs"]) == 3
            assert one["top_logprobs"][0]["logprob"] >= one["top_logprobs"][1]["logprob"]
            assert one["top_logprobs"][0]["token"] == one["token"]  # greedy, and nothing was forbidden
        probabilities = [math.exp(one["logprob"]) for one in told]
        assert ocr["confidence"]["mean"] == pytest.approx(sum(probabilities) / len(told), abs=1e-4)
        assert ocr["confidence"]["lowest"] == pytest.approx(min(probabilities), abs=1e-4)
    bare = answers(server, [user(part(drawn()))], logprobs=True)
    assert all(one["top_logprobs"] == [] for _, _, told in bare for one in told)
    assert all(told for _, _, told in bare)
    assert all(not told for _, _, told in answers(server, [user(part(drawn()))]))


def test_a_bad_page_is_told_from_a_good_one(server: ServerProcess) -> None:
    good = answers(server, [user(part(drawn()))])[0][1]["confidence"]
    bad = answers(server, [user(part(drawn(blur=2.5)))])[0][1]["confidence"]  # more is read as an empty page
    assert good["mean"] > 0.95
    assert bad["mean"] < good["mean"] - 0.1


def test_each_page_of_a_document_has_its_confidence_and_its_tokens(server: ServerProcess) -> None:
    pdf = base64.b64encode(scanned_pdf([drawn(), drawn(blur=2.5)])).decode()
    document = {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{pdf}"}}
    for read, ocr, told in answers(server, [user(document)], logprobs=True):
        pages = [page["confidence"] for page in ocr["pages"]]
        assert pages[0]["mean"] > pages[1]["mean"]
        assert pages[1]["mean"] < ocr["confidence"]["mean"] < pages[0]["mean"]
        assert ocr["confidence"]["lowest"] == min(page["lowest"] for page in pages)
        joined = bytes(byte for one in told for byte in one["bytes"]).decode(errors="replace")
        assert joined.replace("\n", "") == read.replace("\n", "")


def test_alternatives_are_bounded_and_need_log_probabilities(server: ServerProcess) -> None:
    body = {"model": "tiny-ocr", "messages": [user(part(drawn()))], "max_tokens": 5}
    for sent, code in (
        ({**body, "logprobs": True, "top_logprobs": 21}, "unsupported_parameter"),
        ({**body, "logprobs": True, "top_logprobs": -1}, "unsupported_parameter"),
        ({**body, "top_logprobs": 2}, "invalid_request"),
    ):
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=sent)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, "top_logprobs", code)
    answer = httpx.post(f"{server.url}/v1/responses", json=as_responses({**body, "top_logprobs": 20}))
    assert len(answer.json()["output"][0]["content"][0]["logprobs"][0]["top_logprobs"]) == 20


def test_other_tasks_read_the_same_lines_and_say_where_they_are(server: ServerProcess) -> None:
    page, lines = part(demo_page()), PAGE_TEXT.split("\n")
    for read, _, _ in answers(server, [user(part(headed(lines)))], task="markdown", max_tokens=400):
        blocks = re.sub(r"<\|ref\|>.*?<\|/det\|>\n", "", read).split("\n\n")
        assert blocks == [f"# {lines[0]}", *lines[1:]]
    for _, ocr, _ in answers(server, [user(page)], task="ocr", max_tokens=400, ocr={"boxes": True}):
        assert [one["label"] for one in ocr["boxes"]] == lines
        tops = [one["box"][1] for one in ocr["boxes"]]
        assert tops == sorted(set(tops))
        assert tops[0] < demo_page().height / 4
