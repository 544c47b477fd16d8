"""The page in a real browser against the real server: what its users do, in headless Chromium."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pypdf
import pytest
from PIL import Image

from server.http.web.downloads import FORMATS
from tests.pdfs import scanned_pdf
from tests.server.conftest import ServerProcess, data_url
from tests.server.document_requests import numbered
from tests.server.sockets import metric
from tests.waiting import until
from tests.web.conftest import CHROMIUM, Open
from tests.web.pages import LINES, choose, drop, pdf, png, printed, text_of, wait_for_pages, wait_for_text

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the built-in model."""
    server = ServerProcess(["--model", "tiny-ocr", "--slots", "2"], tmp_path_factory.mktemp("tiny"))
    until(lambda: httpx.get(f"{server.url}/ready").status_code == 200, 120)
    yield server
    server.kill()


def test_a_dropped_picture_and_a_pdf_of_three_pages_are_read(visit: Open, reading: ServerProcess) -> None:
    tab = visit(reading)
    tab.wait_for_selector("#task option", state="attached")
    assert "demonstration" in tab.inner_text("#notice")
    drop(tab, png(printed()))
    wait_for_pages(tab, "done")
    part = {"type": "image_url", "image_url": {"url": data_url(printed())}}
    body = {"model": "tiny-ocr", "messages": [{"role": "user", "content": [part]}]}
    answer = httpx.post(f"{reading.url}/v1/chat/completions", json=body, timeout=60).json()
    said = answer["choices"][0]["message"]["content"]
    same = "(words) => document.querySelector('#rendered').innerText.trim().split(/\\s+/).join(' ') === words"
    tab.wait_for_function(same, arg=" ".join(said.split()))
    assert said.split()[:2] == ["Invoice", "2041"]
    content = scanned_pdf([printed((line,)) for line in LINES[:3]])
    scan = {"name": "scan.pdf", "mimeType": "application/pdf", "buffer": content}
    drop(tab, scan)
    wait_for_pages(tab, "done", 4)
    for number, line in enumerate(LINES[:3], 1):
        tab.click(f"[aria-label^='scan.pdf, page {number}:']")
        shown = "(word) => document.querySelector('#rendered').innerText.includes(word)"
        tab.wait_for_function(shown, arg=line.split()[0])
    assert tab.inner_text("#where") == "3 / 3"


def test_blocks_boxes_and_figures_belong_together(visit: Open, scripted: ServerProcess) -> None:
    tab = visit(scripted)
    choose(tab, "markdown", png(printed()))
    wait_for_pages(tab, "done")
    tab.wait_for_selector("#rendered h1")
    assert tab.locator(".place").count() == 4
    place, sheet = tab.locator(".place").first.bounding_box(), tab.locator("#picture").bounding_box()
    assert place["x"] - sheet["x"] == pytest.approx(sheet["width"] * 100 / 999, abs=2)
    tab.hover(".place[data-box='3']")
    assert tab.locator("#rendered section.lit table").count() == 1
    tab.hover("#rendered h1")
    assert tab.locator(".place.lit").get_attribute("data-box") == "0"
    tab.wait_for_function("() => document.querySelector('#rendered img').naturalWidth > 0")
    assert tab.locator("#rendered math msup").count() == 1
    tab.click("#tab-source")
    tab.hover("#source [data-boxes='0']")
    assert tab.locator(".place.lit").get_attribute("data-box") == "0"


def test_a_hostile_page_runs_nothing(visit: Open, scripted: ServerProcess) -> None:
    tab = visit(scripted)
    asked = []
    tab.on("request", lambda request: asked.append(request.url))
    choose(tab, "figure", png(printed()))
    wait_for_pages(tab, "done")
    assert "bold" in text_of(tab)
    tab.click("#tab-source")
    tab.click("#tab-rendered")
    tab.hover("#rendered b")
    tab.click("#rendered b")
    assert tab.evaluate("window.broken") is None
    assert tab.locator("#rendered :is(script, style, svg, iframe, form, button, [onclick], [style])").count() == 0
    assert all(url.startswith((scripted.url, "blob:", "data:")) for url in asked)


def test_the_policy_stops_even_what_came_through_the_cleaning(browser: Any, scripted: ServerProcess) -> None:
    tab = browser.new_page()
    tab.goto(scripted.url)
    worse = "<img src=/none onerror='window.broken = 1'>"
    with tab.expect_console_message(lambda said: "Content Security Policy" in said.text):
        tab.evaluate("(html) => document.body.insertAdjacentHTML('beforeend', html)", worse)
    assert tab.evaluate("window.broken") is None
    tab.close()


def test_blank_and_failed_pages_say_so(visit: Open, scripted: ServerProcess) -> None:
    tab = visit(scripted)
    choose(tab, "ocr", png(printed()))
    wait_for_pages(tab, "blank")
    assert "no text found" in tab.inner_text("#progress")
    choose(tab, "free", {"name": "broken.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.4 nothing"})
    tab.wait_for_function("() => document.querySelector('#list').innerText.includes('damaged')")


def test_cancel_frees_the_slot(visit: Open, scripted: ServerProcess) -> None:
    tab = visit(scripted)
    choose(tab, "describe", png(printed()))
    wait_for_pages(tab, "reading")
    until(lambda: metric(scripted, "ocr_active_requests") == 1)
    tab.click("#cancel")
    wait_for_pages(tab, "cancelled")
    until(lambda: metric(scripted, "ocr_requests_present") == 0)


def test_a_reload_in_mid_stream_frees_the_slot(visit: Open, scripted: ServerProcess) -> None:
    tab = visit(scripted)
    choose(tab, "describe", png(printed()))
    wait_for_pages(tab, "reading")
    tab.on("dialog", lambda dialog: dialog.accept())
    tab.reload()
    until(lambda: metric(scripted, "ocr_requests_present") == 0)
    choose(tab, "free", png(printed()))
    wait_for_text(tab, "Hello, page.")


def test_a_page_that_is_turned_while_it_is_read_is_read_anew_and_can_be_cancelled(
    visit: Open, scripted: ServerProcess
) -> None:
    tab = visit(scripted)
    choose(tab, "describe", png(printed()))
    wait_for_pages(tab, "reading")
    width, height = tab.evaluate(
        "[document.querySelector('#picture').naturalWidth, document.querySelector('#picture').naturalHeight]"
    )
    tab.click("#rotate")
    tab.click("#rotate")
    tab.click("#rotate")
    turned = """([height, width]) => {
        const shown = document.querySelector("#picture");
        return shown.naturalWidth === height && shown.naturalHeight === width;
    }"""
    tab.wait_for_function(turned, arg=[height, width])
    wait_for_pages(tab, "reading")
    until(lambda: bool(tab.evaluate("true")) and metric(scripted, "ocr_active_requests") == 1)
    tab.click("#cancel")
    wait_for_pages(tab, "cancelled")
    until(lambda: metric(scripted, "ocr_requests_present") == 0)


def test_documents_queue_and_are_cancelled_one_by_one(visit: Open, scripted: ServerProcess) -> None:
    tab = visit(scripted)
    choose(tab, "describe", {**png(printed()), "name": "first.png"}, {**png(printed()), "name": "second.png"})
    wait_for_pages(tab, "reading")
    assert tab.locator(".mark.waiting").count() == 1
    tab.click("[aria-label='Cancel first.png']")
    tab.wait_for_selector(".entry:nth-child(1) .mark.cancelled")
    tab.wait_for_selector(".entry:nth-child(2) .mark.reading")
    tab.click("[aria-label='Cancel second.png']")
    wait_for_pages(tab, "cancelled", 2)


def test_a_wrong_key_asks_for_another(visit: Open, start: Callable[..., ServerProcess]) -> None:
    server = start("--api-key", "secret")
    tab = visit(server)
    tab.wait_for_selector("#drawer[open]")
    assert "needs a key" in tab.inner_text("#notice")
    tab.fill("#key", "wrong")
    tab.click("#drawer .primary")
    tab.wait_for_function("() => document.querySelector('#notice').innerText.includes('not one of')")
    tab.fill("#key", "secret")
    tab.click("#drawer .primary")
    choose(tab, "free", png(printed()))
    wait_for_text(tab, "Hello, page.")
    assert tab.evaluate("Object.values(sessionStorage)") == ["secret"]
    assert tab.evaluate("[document.cookie, localStorage.length]") == ["", 0]


def test_a_late_answer_to_an_old_key_takes_nothing_from_whoever_is_typing(
    visit: Open, start: Callable[..., ServerProcess]
) -> None:
    server = start("--api-key", "secret")
    tab = visit(server)
    tab.wait_for_selector("#drawer[open]")
    held: list[Any] = []
    tab.route("**/v1/models", lambda route: held.append(route))
    tab.fill("#key", "wrong")
    tab.click("#drawer .primary")  # the changed key and the closed drawer ask one after the other
    until(lambda: bool(tab.evaluate("true")) and len(held) == 2)
    held[1].continue_()
    tab.wait_for_selector("#drawer[open]")
    tab.fill("#key", "secret")
    with tab.expect_response("**/v1/models"):
        held[0].continue_()
    tab.unroute("**/v1/models")
    tab.evaluate("new Promise(requestAnimationFrame)")
    assert tab.input_value("#key") == "secret"
    tab.click("#drawer .primary")
    choose(tab, "free", png(printed()))
    wait_for_text(tab, "Hello, page.")


def test_a_full_queue_is_waited_for_and_the_wait_is_shown(visit: Open, start: Callable[..., ServerProcess]) -> None:
    server = start("--slots", "1", "--max-queue", "1")
    first = visit(server)
    choose(first, "describe", {**png(printed()), "name": "a.png"})
    wait_for_pages(first, "reading")
    other = visit(server)
    choose(other, "describe", {**png(printed()), "name": "b.png"})
    until(lambda: metric(server, "ocr_requests_present") == 2)
    tab = visit(server)
    choose(tab, "free", png(printed()))
    tab.wait_for_function("() => /Next try in \\d+ s/.test(document.querySelector('#progress').innerText)")
    other.click("#cancel")
    first.click("#cancel")
    wait_for_text(tab, "Hello, page.")


def test_a_server_that_goes_away_and_comes_back_is_tried_again(
    visit: Open, start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = start()
    tab = visit(server)
    choose(tab, "describe", png(printed()))
    wait_for_pages(tab, "reading")
    server.kill()
    tab.wait_for_function("() => document.querySelector('#progress').innerText.includes('Next try')")
    tab.select_option("#task", "free")
    start("--port", str(server.port))
    wait_for_pages(tab, "done")
    wait_for_text(tab, "Hello, page.")


def test_an_answer_that_was_cut_names_the_setting(visit: Open, scripted: ServerProcess) -> None:
    tab = visit(scripted)
    tab.click("#settings")
    tab.locator("#fields label", has_text="max new tokens").locator("input").fill("1")
    tab.click("#drawer .primary")
    choose(tab, "free", png(printed()))
    wait_for_pages(tab, "cut")
    assert "raise max_tokens" in tab.inner_text("#progress")


def test_a_rotated_page_is_read_again(visit: Open, scripted: ServerProcess) -> None:
    tab = visit(scripted)
    choose(tab, "free", png(printed()))
    wait_for_pages(tab, "done")
    tab.click("#rotate")
    turned = "() => { const { naturalHeight: h, naturalWidth: w } = document.querySelector('#picture'); return h > w }"
    tab.wait_for_function(turned)
    wait_for_pages(tab, "done")
    scripted.wait_for_line(r"images=380x620")


def test_what_was_read_is_copied_and_downloaded(visit: Open, scripted: ServerProcess, tmp_path: Path) -> None:
    tab = visit(scripted)
    choose(tab, "markdown", png(printed()))
    wait_for_pages(tab, "done")
    tab.click("#copy")
    assert tab.evaluate("navigator.clipboard.readText()").startswith("<|ref|>title")
    files = {}
    forms = tab.eval_on_selector_all("#download option", "options => options.map(({ value }) => value)")
    assert set(forms) == {"", *FORMATS} - {"pdf-a"}
    for form in filter(None, forms):
        with tab.expect_download() as download:
            tab.select_option("#download", form)
        assert download.value.suggested_filename == ("page.alto.xml" if form == "alto" else f"page.{form}")
        files[form] = Path(download.value.path()).read_bytes()
        tab.wait_for_timeout(150)  # Chromium drops the eleventh download within a second
    assert json.loads(files["json"])["pages"][0]["boxes"][0]["label"] == "title"
    assert b"<h1>Annual report</h1>" in files["html"]
    with zipfile.ZipFile(io.BytesIO(files["zip"])) as parts:
        figure = Image.open(io.BytesIO(parts.read("images/page-p1-0.png")))
        assert figure.size == (pytest.approx(620 * 400 / 999, abs=2), pytest.approx(380 * 200 / 999, abs=2))
    assert zipfile.ZipFile(io.BytesIO(files["docx"])).testzip() is None
    assert "Annual report" in pypdf.PdfReader(io.BytesIO(files["pdf"])).pages[0].extract_text()
    assert b"bbox 0 0 620 380" in files["hocr"]
    assert json.loads(files["jsonl"])["blocks"][0]["kind"] == "title"


def test_the_code_that_is_shown_gives_the_same_text(visit: Open, scripted: ServerProcess, tmp_path: Path) -> None:
    tab = visit(scripted)
    file = png(printed())
    (tmp_path / "page.png").write_bytes(file["buffer"])
    choose(tab, "free", file)
    wait_for_pages(tab, "done")
    tab.click("#code")
    curl, python = tab.inner_text("#curl"), tab.inner_text("#python")
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=env).stdout

    assert json.loads(run("bash", "-c", curl))["choices"][0]["message"]["content"] == "Hello, page."
    assert run(sys.executable, "-c", python).strip() == "Hello, page."


def test_everything_can_be_done_from_the_keyboard(visit: Open, scripted: ServerProcess) -> None:
    tab = visit(scripted)
    tab.wait_for_selector("#task option", state="attached")
    with tab.expect_file_chooser() as chooser:
        for _ in range(12):
            tab.keyboard.press("Tab")
            if tab.evaluate("document.activeElement.id") == "choose":
                break
        tab.keyboard.press("Enter")
    chooser.value.set_files([pdf(3)])
    wait_for_pages(tab, "done", 3)
    tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#where") == "2 / 3"
    seen = set()
    for _ in range(60):
        tab.keyboard.press("Tab")
        seen.add(tab.evaluate("document.activeElement.id || document.activeElement.className"))
    page_bar = {"previous", "next", "in", "out", "fit", "rotate", "boxes"}
    assert page_bar | {"tab-rendered", "again", "copy", "download", "code"} <= seen
    tab.focus("#tab-rendered")
    tab.keyboard.press("ArrowRight")
    assert tab.get_attribute("#tab-source", "aria-selected") == "true"
    tab.focus("#settings")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#drawer[open]")
    tab.keyboard.press("Escape")
    tab.wait_for_selector("#drawer:not([open])", state="attached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(visit: Open, scripted: ServerProcess, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed (extra dev)")
    tab = visit(scripted, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce")  # axe injects itself
    tab.set_viewport_size({"width": width, "height": 800})

    def violations() -> list[str]:
        found = axe.Axe().run(tab).response["violations"]
        return [f"{one['id']}: {[node['html'][:150] for node in one['nodes']]}" for one in found]

    tab.wait_for_selector("#task option", state="attached")
    assert violations() == []
    choose(tab, "markdown", png(printed()), pdf(3))
    wait_for_pages(tab, "done", 4)
    tab.wait_for_selector("#rendered h1")
    assert violations() == []
    tab.click("#settings")
    assert violations() == []


def test_a_phone_needs_no_sideways_scrolling(visit: Open, scripted: ServerProcess) -> None:
    tab = visit(scripted)
    tab.set_viewport_size({"width": 390, "height": 800})
    choose(tab, "markdown", png(printed()), pdf(3))
    wait_for_pages(tab, "done", 4)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_300_pages_stay_usable(visit: Open, scripted: ServerProcess) -> None:
    tab = visit(scripted)
    choose(tab, "free", {**pdf(1), "name": "long.pdf", "buffer": numbered(300)})
    wait_for_pages(tab, "done", 39)  # whose widths are 101 to 139 pixels: the others are not read to their end
    tab.click("[aria-label^='long.pdf, page 300:']")
    assert tab.inner_text("#where") == "300 / 300"
    tab.click("[aria-label='Cancel long.pdf']")
    wait_for_pages(tab, "cancelled", 261)
    until(lambda: metric(scripted, "ocr_requests_present") == 0)


def test_the_task_about_something_asks_what(visit: Open, scripted: ServerProcess) -> None:
    tab = visit(scripted)
    tab.wait_for_selector("#task option", state="attached")
    assert tab.is_hidden("#words")
    tab.select_option("#task", "locate")
    tab.fill("#words", "the total")
    tab.set_input_files("#files", [png(printed())])
    wait_for_text(tab, "Hello, page.")


def test_uncertain_words_are_tinted_and_a_page_says_how_sure_it_is(visit: Open, reading: ServerProcess) -> None:
    tab = visit(reading)
    tab.wait_for_selector("#task option", state="attached")
    tab.click("#settings")
    tab.check("#tint")
    tab.click("#drawer .primary")
    noise = Image.effect_noise((620, 380), 120).convert("RGB")
    tab.set_input_files("#files", [png(Image.blend(printed(), noise, 0.6))])
    tab.wait_for_function("() => document.querySelector('.mark.done, .mark.blank, .mark.cut')")
    assert re.search(r"\d+ % sure", tab.inner_text("#progress"))
    tab.click("#tab-source")
    marks = tab.locator("#source mark")
    assert marks.count() > 0
    assert re.fullmatch(r"\d+ % sure", marks.first.get_attribute("title"))


@pytest.mark.skipif(
    "OCR_ONNX_SCREENSHOTS" not in os.environ, reason="set OCR_ONNX_SCREENSHOTS to a folder to make them"
)
def test_screenshots_for_the_docs(visit: Open, scripted: ServerProcess) -> None:
    folder = Path(os.environ["OCR_ONNX_SCREENSHOTS"])
    for name, scheme, width in (("light", "light", 1280), ("dark", "dark", 1280), ("phone", "light", 390)):
        tab = visit(scripted, color_scheme=scheme)
        tab.set_viewport_size({"width": width, "height": 800})
        choose(tab, "markdown", png(printed()), pdf(3))
        wait_for_pages(tab, "done", 4)
        tab.wait_for_selector("#rendered h1")
        tab.hover(".place[data-box='3']")
        tab.screenshot(path=folder / f"web-{name}.png")
