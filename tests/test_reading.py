"""From pixels to words: the built-in model reads rendered text through exporter and runtime, in every dtype."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from models.catalog import CATALOG
from runtime import Model
from tools.demo import PAGE_TEXT, draw_page

pytest.importorskip("torch")  # which the module of the held-out pages imports

from tools.train_tiny.evaluate import edit_distance
from tools.train_tiny.held_out import held_out_pages

CHECKPOINT = Path(CATALOG["tiny-ocr"].source)

pytestmark = pytest.mark.skipif(
    not (CHECKPOINT / "model.safetensors").is_file(), reason="the built-in model's weights are not in this checkout"
)


def similarity(read: str, truth: str) -> float:
    return difflib.SequenceMatcher(None, read, truth, autojunk=False).ratio()


def line(text: str) -> Image.Image:
    """One line of large type in the middle of a strip that gives tiles."""
    image = Image.new("RGB", (360, 120), "white")
    ImageDraw.Draw(image).text((20, 40), text, "black", font=ImageFont.load_default(30))
    return image


@pytest.fixture(scope="module")
def model(export_checkpoint: Callable[..., Path]) -> Iterator[Model]:
    with Model.open(export_checkpoint(CHECKPOINT, "f32", "tiny-ocr"), device="cpu", slots=4) as opened:
        yield opened


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8", "q4"])
def test_a_printed_page_is_read_in_every_dtype(dtype, export_checkpoint, tmp_path) -> None:
    page = draw_page(tmp_path / "page.png")
    with Model.open(export_checkpoint(CHECKPOINT, dtype, "tiny-ocr"), device="cpu", slots=1) as opened:
        result = opened.read(page, max_new_tokens=200)
    assert similarity(result.text, PAGE_TEXT) > 0.8, result.text
    assert result.finished.detail == "eos"


def test_fewer_bits_cost_few_characters(model, export_checkpoint) -> None:
    """The pages are the same for all, so the difference is that of the weights; for full figures: ``tools.accuracy``.

    The project's bars, 0.3 and 1.0 points, are for hundreds of pages; of these few one word more makes half a point.
    """
    pages = [page for category in ("one_line", "clean", "figures") for page in held_out_pages(category, 4)]
    truth = [page.text for page in pages]

    def rate(opened: Model) -> float:
        with ThreadPoolExecutor(4) as pool:
            read = list(pool.map(lambda page: opened.read(page.image, max_new_tokens=20 + 2 * len(page.text)), pages))
        errors = sum(edit_distance(one.text, text) for one, text in zip(read, truth, strict=True))
        return 100 * errors / sum(map(len, truth))

    exact = rate(model)
    assert exact < 20
    for dtype, points in (("q8", 1.5), ("q4", 4.0)):
        with Model.open(export_checkpoint(CHECKPOINT, dtype, "tiny-ocr"), device="cpu", slots=4) as opened:
            assert rate(opened) < exact + points, dtype


def test_the_readme_as_an_image_comes_back_readable(model) -> None:
    """Its first paragraph, ten lines at most, as a page of print."""
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    lines = textwrap.wrap(readme.split("\n\n")[1], 36)[:10]
    page = Image.new("RGB", (600, 36 * len(lines) + 40), "white")
    for number, text in enumerate(lines):
        ImageDraw.Draw(page).text((20, 20 + 36 * number), text, "black", font=ImageFont.load_default(28))
    read = model.read(page, max_new_tokens=600).text
    assert similarity(read, "\n".join(lines)) > 0.8, read


def test_the_demonstration_s_page_and_nine_like_it_keep_every_line(model) -> None:
    """The weights before lost the total, whose line ends like the one above."""
    pages = held_out_pages("demo", 10)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda page: model.read(page.image, max_new_tokens=200).text, pages))
    assert pages[0].text == PAGE_TEXT
    assert texts[0].splitlines()[:4] == PAGE_TEXT.splitlines()[:4]
    for page, read in zip(pages, texts, strict=True):
        assert len(read.splitlines()) == 5, read
        assert edit_distance(read, page.text) < 0.1 * len(page.text), read


def test_a_blank_page_stays_blank(model) -> None:
    for size in [(150, 150), (384, 192), (600, 800)]:
        assert model.read(Image.new("RGB", size, "white"), max_new_tokens=50).text == ""


def test_a_page_without_its_tiles_reads_worse(model, tmp_path) -> None:
    """The tiles carry the detail: without them the type is too small for the global view."""
    page = draw_page(tmp_path / "page.png")
    with_tiles = model.read(page, max_new_tokens=200)
    without = model.read(page, max_new_tokens=200, max_tiles=1)
    assert with_tiles.finished.usage.image_tokens > without.finished.usage.image_tokens
    assert similarity(with_tiles.text, PAGE_TEXT) > similarity(without.text, PAGE_TEXT)


def test_pages_read_together_and_streamed_give_the_text_of_each_alone(model) -> None:
    pages = [
        line(text) for text in ("Hello world", "Total 42.50", "Paper and ink", "Page 7 of 9", "Thank you", "New York")
    ]
    alone = [model.read(page, max_new_tokens=40).text for page in pages]
    with ThreadPoolExecutor(len(pages)) as pool:
        together = list(pool.map(lambda page: model.read(page, max_new_tokens=40).text, pages))
    assert together == alone
    assert ["".join(model.stream(page, max_new_tokens=40)) for page in pages] == alone
    assert similarity(alone[0], "Hello world") > 0.6, alone
