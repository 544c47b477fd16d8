"""A page of known parts the whole way, with a real detector's graph and the built-in model as the one that reads."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from models.catalog import CATALOG
from models.model_errors import InvalidInput
from runtime import Model
from tests.detectors import write_detector

CHECKPOINT = Path(CATALOG["tiny-ocr"].source)
WIDTH, HEIGHT = 800, 1600
ENTRY = replace(CATALOG["tiny-ocr"], page={"join_text": False})  # no text goes on in the next column

pytestmark = pytest.mark.skipif(
    not (CHECKPOINT / "model.safetensors").is_file(), reason="the built-in model's weights are not in this checkout"
)

LINES = [
    "The harbour was quiet", "Seven boats came home", "Prices fell in March", "Nobody saw the letter",
    "Rain is expected today", "The train left at noon", "Our garden has no gate", "She wrote three books",
    "Winter begins early", "Green apples are sour", "He paid with a coin", "They sing on Sunday",
    "A lamp stood outside", "Four doors were open", "This road ends here", "Good bread takes time",
]  # fmt: skip


@pytest.fixture(scope="module")
def page() -> tuple[Image.Image, list[tuple[str, tuple[float, float, float, float], float]]]:
    """Sixteen lines of print in two columns, and what a detector finds: its order is down the columns."""
    image, found = Image.new("RGB", (WIDTH, HEIGHT), "white"), []
    for number, text in enumerate(LINES):
        left, top = 20 + 400 * (number // 8), 60 + 190 * (number % 8)
        ImageDraw.Draw(image).text((left + 10, top + 12), text, "black", font=ImageFont.load_default(30))
        found.append(("text", (left / WIDTH, top / HEIGHT, (left + 360) / WIDTH, (top + 60) / HEIGHT), 0.9))
    return image, found


@pytest.fixture(scope="module")
def folder(export_checkpoint: Callable[..., Path]) -> Path:
    return export_checkpoint(CHECKPOINT, "f32", "tiny-ocr")


@pytest.fixture(scope="module")
def detector(page, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector"), page[1])


@pytest.fixture(scope="module")
def model(folder: Path, detector: Path) -> Iterator[Model]:
    with Model.open(folder, device="cpu", slots=16, layout=detector, entry=ENTRY) as opened:
        yield opened


def test_sixteen_parts_together_give_what_each_gives_alone(model, page, folder, detector) -> None:
    image, found = page
    together = model.read(image, task="document")
    blocks = together.finished.blocks
    assert [block.box for block in blocks] == [
        tuple(round(share * side) for share, side in zip(box, (WIDTH, HEIGHT) * 2, strict=True)) for _, box, _ in found
    ]
    alone = [model.read(image.crop(block.box), task="free") for block in blocks]
    assert [block.text for block in blocks] == [one.text.replace("\n", "\n\n") for one in alone]
    assert together.text == "\n\n".join(block.text for block in blocks)
    usage = together.finished.usage
    assert usage.completion_tokens == len(together.tokens) == sum(one.finished.usage.completion_tokens for one in alone)
    assert usage.prompt_tokens == sum(one.finished.usage.prompt_tokens for one in alone)
    with Model.open(folder, device="cpu", slots=1, layout=detector, entry=ENTRY) as single:
        assert single.read(image, task="document").text == together.text


def test_the_text_is_what_is_printed_in_the_order_of_the_layout(model, page) -> None:
    result = model.read(page[0])  # the task is the default where there is a detector
    read, truth = result.text, "\n\n".join(LINES)
    assert difflib.SequenceMatcher(None, read, truth, autojunk=False).ratio() > 0.9, read
    assert result.finished.timings.layout > 0
    assert all(block.confidence is not None and 0 < block.confidence <= 1 for block in result.finished.blocks)
    assert "".join(model.stream(page[0])) == read


def test_a_text_that_goes_on_in_the_next_column_is_one_part(page, folder, detector) -> None:
    with Model.open(folder, device="cpu", slots=4, layout=detector) as opened:
        blocks = opened.read(page[0]).finished.blocks
    assert [bool(block.text) for block in blocks] == [True] * 8 + [False] + [True] * 7
    assert blocks[7].text.split()[0] == LINES[7].split()[0]
    assert blocks[7].text.split()[-1] == LINES[8].split()[-1]


def test_a_detector_that_is_exported_later_is_found_without_loading_the_model_again(page, folder, tmp_path) -> None:
    entry = replace(ENTRY, layout=str(tmp_path / "later"))
    with Model.open(folder, device="cpu", slots=4, layout=tmp_path / "later", entry=entry) as opened:
        assert opened.default_task == "free"
        with pytest.raises(InvalidInput, match="holds no export"):
            opened.read(page[0], task="document")
        write_detector(tmp_path / "later", page[1][:2])
        assert opened.default_task == "document"
        assert len(opened.read(page[0]).finished.blocks) == 2


def test_the_command_reads_a_page_by_its_parts_as_config_toml_says(
    page, folder, detector, tmp_path, monkeypatch, capsys
) -> None:
    from server.command.main import main

    image, found = page
    pictures = [("image", (0.0, 0.96, 0.3, 0.99), 0.9), ("header", (0.5, 0.0, 0.9, 0.03), 0.9)]
    with_picture = write_detector(tmp_path / "detector", [*found[:2], *pictures])
    cache = tmp_path / "cache" / "models" / "tiny-ocr" / "onnx"
    cache.mkdir(parents=True)
    (cache / "f32").symlink_to(folder)
    monkeypatch.setenv("OCR_ONNX_CACHE", str(tmp_path / "cache"))
    image.save(tmp_path / "page.png")
    config = tmp_path / "config.toml"
    config.write_text(f'[models.entries.tiny-ocr]\nlayout = "{with_picture}"\npage = {{ margin = 2 }}\n')
    command = ["read", str(tmp_path / "page.png"), "--model", "tiny-ocr", "--config", str(config), "--quiet"]
    assert main([*command, "-o", str(tmp_path / "out"), "--format", "md,json", "--overlay"]) == 0
    markdown = (tmp_path / "out/page.md").read_text()
    assert markdown.endswith("\n\n![](images/page-p1-0.jpg)\n")
    assert Image.open(tmp_path / "out/images/page-p1-0.jpg").size == (240, 48)
    assert Image.open(tmp_path / "out/overlays/page-p1.jpg").size == (WIDTH, HEIGHT)
    (read,) = json.loads((tmp_path / "out/page.json").read_text())["pages"]
    assert [block["label"] for block in read["blocks"]] == ["text", "text", "image", "header"]
    assert read["blocks"][2]["image"] == "images/page-p1-0.jpg"
    config.write_text('[models.entries.tiny-ocr]\nlayout = "v3"\n')
    assert main([*command, "--task", "document"]) == 2
    assert "ocr-onnx export pp-doclayout-v3" in capsys.readouterr().err
