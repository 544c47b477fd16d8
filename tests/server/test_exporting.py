"""A request for a model that is not there takes nothing away from the others: tiny-ocr serves, a hub misbehaves."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image, ImageDraw, ImageFont

from models.catalog import CATALOG, SUPPORTED_FAMILIES, family_spellings, normalise_family
from runtime.runtime_errors import ModelUnavailable
from server.reasons import without_paths
from tests.export.fake_hubs import COMMIT, FakeHubs
from tests.pdfs import scanned_pdf
from tests.server.conftest import MakeService, ServerProcess, chat, data_url
from tests.server.document_requests import file_url
from tests.server.sockets import Raw
from tests.waiting import until

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript", reason="exporting needs the export extra")

REMOTE = '[models.entries.remote]\nkind = "deepseek-ocr"\nsource = "acme/ocr"\n'
MISSING = '[models.entries.missing]\nkind = "deepseek-ocr"\nsource = "./nothing-here"\n'

_CHAT = {"messages": chat()["messages"]}
_ITEM = {"role": "user", "content": [{"type": "input_image", "image_url": data_url()}]}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", _CHAT),
    "chat, streamed": ("/v1/chat/completions", {**_CHAT, "stream": True}),
    "responses": ("/v1/responses", {"input": [_ITEM]}),
    "responses, streamed": ("/v1/responses", {"input": [_ITEM], "stream": True}),
    "ocr": ("/v1/ocr", {"document": {"image_url": data_url()}}),
}


@pytest.fixture(scope="module")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose cache has an export of tiny-ocr."""
    from export.cli import main

    home = tmp_path_factory.mktemp("tiny")
    folder = home / "cache" / "deepseek-ocr" / "models" / "tiny-ocr" / "onnx" / "f32"
    config = home / "empty.toml"
    config.write_text("")
    assert main(["tiny-ocr", "--dtype", "f32", "--config", str(config), "--output", str(folder)]) == 0
    return home


Serve = Callable[..., ServerProcess]


@pytest.fixture
def serve(tiny_cache: Path, tmp_path: Path) -> Iterator[Serve]:
    """Start a server in a home that has tiny-ocr's export, with the given config.toml."""
    with contextlib.ExitStack() as stack:

        def start(config: str, *arguments: str, model: str = "tiny-ocr", **environment: str) -> ServerProcess:
            shutil.copytree(tiny_cache / "cache", tmp_path / "cache", dirs_exist_ok=True)
            path = tmp_path / "config.toml"
            path.write_text(config)
            environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", **environment}
            arguments = ("--config", str(path), "--model", model, *arguments)
            server = ServerProcess(list(arguments), tmp_path, **environment)
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture
def stalled() -> Iterator[FakeHubs]:
    """A hub that has a model and stops sending in the middle of a file."""
    with FakeHubs(revisions={COMMIT: {"config.json": b"{}" * 5000, "model.safetensors": b"x" * 200_000}}) as hubs:
        hubs.stall_after = 1000
        yield hubs
        hubs.released.set()


def ready(server: ServerProcess) -> None:
    until(lambda: httpx.get(f"{server.url}/ready").status_code == 200, 120)


def ask(server: ServerProcess, model: str = "tiny-ocr", way: str = "chat") -> httpx.Response:
    path, body = WAYS[way]
    return httpx.post(f"{server.url}{path}", json={"model": model, "max_tokens": 8, **body}, timeout=120)


def error(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


def exporters(server: ServerProcess) -> list[psutil.Process]:
    return [child for child in psutil.Process(server.process.pid).children() if "export" in _command(child)]


def test_the_loaded_model_serves_while_a_stalled_hub_is_asked_for_another(serve: Serve, stalled: FakeHubs) -> None:
    server = serve(REMOTE, HF_ENDPOINT=stalled.url)
    ready(server)
    refused = ask(server, "remote")
    assert (refused.status_code, error(refused)["code"]) == (503, "model_exporting")
    assert int(refused.headers["retry-after"]) >= 1
    until(lambda: bool(stalled.bodies("config.json")))
    for _ in range(3):
        assert ask(server).status_code == 200
    until(
        lambda: re.search(r"so far: .*\d+\.\d MB", error(ask(server, "remote"))["message"]) is not None
    )  # how far it is
    message = error(ask(server, "remote"))["message"]
    assert re.search(r"for \d+ s so far", message)
    assert str(server.home) not in message
    assert len(exporters(server)) == 1
    assert not server.find("unloading")
    listed = {model["id"]: model for model in httpx.get(f"{server.url}/v1/models").json()["data"]}
    assert [(listed[name]["exported"], listed[name]["loaded"]) for name in ("tiny-ocr", "remote")] == [
        (True, True),
        (False, False),
    ]
    assert server.stop() == 0
    assert exporters_are_gone(server)


def exporters_are_gone(server: ServerProcess) -> bool:
    return not any(str(server.home) in " ".join(_command(one)) for one in psutil.process_iter())


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_client_that_hangs_up_ends_an_export_that_nobody_else_waits_for(serve: Serve, stalled: FakeHubs) -> None:
    server = serve(REMOTE, "--export-wait", "60", HF_ENDPOINT=stalled.url)
    ready(server)
    first = Raw(server, chat(model="remote"))
    second = Raw(server, chat(model="remote", stream=True))
    until(lambda: bool(stalled.bodies("config.json")))
    first.hang_up()
    assert ask(server).status_code == 200
    assert len(exporters(server)) == 1  # the second one waits for it
    second.hang_up()
    until(lambda: not exporters(server))
    assert server.find("nobody waits for it any more")
    assert ask(server).status_code == 200
    stalled.stall_after = None  # another client can have it made: this hub's files are no model
    assert error(ask(server, "remote"))["code"] == "model_unavailable"


def test_who_waits_is_told_the_progress_when_the_wait_is_over(serve: Serve, stalled: FakeHubs) -> None:
    server = serve(REMOTE, "--export-wait", "0.5", HF_ENDPOINT=stalled.url)
    ready(server)
    refused = ask(server, "remote")
    assert (refused.status_code, error(refused)["code"]) == (503, "model_exporting")
    assert exporters(server)


@pytest.mark.parametrize("hub", ["offline", "refused"])
def test_a_lasting_failure_is_told_on_every_way_and_remembered(serve: Serve, stalled: FakeHubs, hub: str) -> None:
    stalled.token, stalled.gated = "secret", True
    where = {"HF_HUB_OFFLINE": "1"} if hub == "offline" else {"HF_ENDPOINT": stalled.url}
    server = serve(REMOTE, "--export-wait", "60", **where)
    ready(server)
    for way in WAYS:
        answer = ask(server, "remote", way)
        found = error(answer)
        assert (answer.status_code, found["code"], found["param"]) == (404, "model_unavailable", "model"), way
        assert {"offline": "offline", "refused": "acme/ocr"}[hub] in found["message"].lower()
        assert str(server.home) not in found["message"]
        assert "retry-after" not in answer.headers
    assert "tried again in" in found["message"]
    assert sum("exporting it to" in line for line in server.lines) == 1
    assert ask(server).status_code == 200


@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_is_told_of_an_export_that_goes_on(serve: Serve, stalled: FakeHubs, way: str) -> None:
    server = serve(REMOTE, HF_ENDPOINT=stalled.url)
    ready(server)
    refused = ask(server, "remote", way)
    assert (refused.status_code, error(refused)["code"]) == (503, "model_exporting")
    assert ask(server, way=way).status_code == 200


def test_a_page_reads_alike_as_a_picture_a_pdf_an_upload_and_a_job(serve: Serve) -> None:
    server = serve("")
    ready(server)
    text = "Invoice 4711\nTotal: 128.50 EUR"
    page = Image.new("RGB", (640, 240), "white")
    ImageDraw.Draw(page).text((24, 24), text, fill="black", font=ImageFont.load_default(26), spacing=10)
    pdf = scanned_pdf([page])
    upload = httpx.post(f"{server.url}/v1/files", files={"file": ("a.pdf", pdf)}, data={"purpose": "ocr"}).json()
    signed = httpx.get(f"{server.url}/v1/files/{upload['id']}/url").json()["url"]
    assert httpx.get(signed).content == pdf
    documents = [
        {"type": "image_url", "image_url": data_url(page)},
        {"type": "document_url", "document_url": file_url(pdf)},
        {"type": "file", "file_id": upload["id"]},
        {"type": "document_url", "document_url": signed},
    ]
    read = [httpx.post(f"{server.url}/v1/ocr", json={"document": one}, timeout=120).json() for one in documents]
    job = httpx.post(f"{server.url}/v1/ocr/jobs", json={"document": documents[1]}).json()
    until(lambda: httpx.get(f"{server.url}/v1/ocr/jobs/{job['id']}").json()["status"] == "succeeded")
    read.append(httpx.get(f"{server.url}/v1/ocr/jobs/{job['id']}").json()["result"])
    assert [one["pages"][0]["markdown"] for one in read] == [text] * 5
    assert {one["model"] for one in read} == {"tiny-ocr"}
    assert read[1]["pages"][0]["dimensions"] == {"dpi": 144, "width": 640, "height": 240}


def test_without_waiting_the_reason_of_a_failure_reaches_the_next_who_asks(serve: Serve) -> None:
    server = serve(MISSING)
    ready(server)
    assert ask(server, "missing").status_code == 503
    until(lambda: ask(server, "missing").status_code == 404)
    message = error(ask(server, "missing"))["message"]
    assert "nothing-here is no directory" in message
    assert str(server.home) not in message
    assert server.find(re.escape(str(server.home / "nothing-here")))  # the operator sees all of it


def test_a_damaged_export_never_makes_the_loaded_model_leave(serve: Serve) -> None:
    server = serve(MISSING)
    ready(server)
    folder = server.home / "cache" / "deepseek-ocr" / "models" / "missing" / "onnx" / "q8"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    answer = ask(server, "missing")
    assert (answer.status_code, error(answer)["code"]) == (404, "model_unavailable")
    assert "export the model again" in error(answer)["message"]
    assert not server.find("unloading")
    shutil.copytree(folder.parents[2] / "tiny-ocr" / "onnx" / "f32", folder, dirs_exist_ok=True)
    assert ask(server, "missing").status_code == 200  # mended by hand: no memory of the failure is in the way
    assert server.find("unloading model tiny-ocr")


def test_an_operator_can_forbid_exports_and_switches(serve: Serve) -> None:
    server = serve(REMOTE, "--export-on-demand", "off")
    ready(server)
    refused = ask(server, "remote")
    assert (refused.status_code, error(refused)["code"]) == (404, "model_unavailable")
    assert "--export-on-demand" in error(refused)["message"]
    unknown = error(ask(server, "gpt-4"))["message"]
    assert unknown.endswith("known models: tiny-ocr")  # nothing that could not be had
    server.stop()

    server = serve(REMOTE, "--switch-models", "off")
    ready(server)
    refused = ask(server, "remote")
    assert (refused.status_code, error(refused)["code"]) == (404, "model_not_served")
    assert ask(server).status_code == 200
    assert error(ask(server, "gpt-4"))["message"].endswith("known models: tiny-ocr")
    assert not server.find("exporting it to")


def test_ids_that_cannot_be_used_are_not_suggested(serve: Serve) -> None:
    unsupported = [kind for kind in family_spellings() if normalise_family(kind) not in SUPPORTED_FAMILIES]
    others = [f'[models.entries.other{number}]\nkind = "{kind}"\n' for number, kind in enumerate(unsupported)]
    server = serve(REMOTE + "".join(others))
    ready(server)
    known = {model_id for model_id, entry in CATALOG.items() if entry.family in SUPPORTED_FAMILIES}
    usable = sorted({"remote", *known} - {"tiny-ocr"})
    message = error(ask(server, "gpt-4"))["message"]
    assert message.endswith(f"known models: {', '.join(['tiny-ocr', *usable])}")
    listed = [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]]
    assert listed == ["tiny-ocr", *usable]


def test_a_server_whose_model_cannot_be_loaded_ends_with_the_reason(serve: Serve) -> None:
    server = serve(MISSING, model="missing")
    assert server.ended() == 1
    assert "nothing-here is no directory" in server.lines[-1]
    assert server.lines[-1].startswith("error: ")


def test_a_server_that_is_to_wait_for_its_model_stays(serve: Serve) -> None:
    server = serve(MISSING, "--wait-for-model", model="missing")
    server.wait_for_line("model missing is not ready")
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/ready").json()["status"] == "no_model"
    assert ask(server, "missing").status_code == 404
    assert ask(server, "tiny-ocr").status_code == 200


def test_a_load_that_fails_for_good_is_remembered_and_one_that_may_work_is_tried_again(
    make_service: MakeService,
) -> None:
    service = make_service()
    service.source.problem = ModelUnavailable("no graph for this device in /srv/models/x", permanent=True)
    answers = [service.post(chat()) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert "/srv" not in json.dumps(answers[0].json)
    assert len(service.source.loads) == 1
    other = make_service()
    other.source.problem = ModelUnavailable("no memory left")
    assert [other.post(chat()).status_code for _ in range(2)] == [503, 503]
    assert len(other.source.loads) == 2


def test_exports_that_are_waited_for_leave_places_to_the_model_that_serves(serve: Serve, stalled: FakeHubs) -> None:
    server = serve(REMOTE, "--export-wait", "60", "--slots", "1", "--max-queue", "7", HF_ENDPOINT=stalled.url)
    ready(server)
    waiting = [Raw(server, chat(model="remote")) for _ in range(2)]  # a quarter of the places
    until(lambda: bool(stalled.bodies("config.json")))
    until(lambda: "ocr_requests_present 2.0" in httpx.get(f"{server.url}/metrics").text)
    assert ask(server, "remote").status_code == 503  # at once
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(ask(server).status_code)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert codes == [200] * 4
    for raw in waiting:
        raw.hang_up()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/srv/m/q8/decoder.onnx is missing", "decoder.onnx is missing"),
        ("files: '/srv/a b/x.json', ~/c/d.bin (C:\\Users\\Bo\\e.bin)", None),
        ("https://huggingface.co/deepseek-ai/DeepSeek-OCR answered 403 for deepseek-ai/DeepSeek-OCR", ...),
        ("3 GB free; run python -m export x --dtype q8", ...),
    ],
)
def test_reasons_keep_their_words_and_lose_their_folders(text: str, shown: Any) -> None:
    cut = without_paths(text)
    if shown is None:
        assert not re.search(r"/srv|~|Users|/c/", cut)
        assert "d.bin" in cut
    else:
        assert cut == (text if shown is ... else shown)
