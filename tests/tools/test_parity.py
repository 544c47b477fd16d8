"""The parity report on float32 exports of small checkpoints, of each family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torch")

from models.manifest import Manifest
from tools.parity import default_steps, main, measure, run_reference


@pytest.fixture(scope="module")
def paddle(tmp_path_factory: pytest.TempPathFactory, export_checkpoint: Callable[..., Path]) -> tuple[Path, Path]:
    """A checkpoint and its export."""
    from tools.paddle_checkpoints import write_paddle_checkpoint

    checkpoint = write_paddle_checkpoint(tmp_path_factory.mktemp("paddle") / "checkpoint")
    return checkpoint, export_checkpoint(checkpoint, model_id="paddleocr-vl", family="paddleocr-vl")


def test_deepseek_is_compared_tile_by_tile(
    random_checkpoint: Path, random_model_folder: Path, picture: Callable[..., Image.Image]
) -> None:
    page = picture(900, 1200)
    reference = run_reference(random_checkpoint, random_model_folder, [page], steps=6)
    assert len(reference.tokens) == len(reference.logits) == 7
    found = measure(random_model_folder, [page], reference)
    assert found.feature_error < 1e-4
    assert found.logit_error < 1e-4
    assert found.top_1_agreement == 1


def test_paddle_is_compared_at_its_own_positions(
    paddle: tuple[Path, Path], picture: Callable[..., Image.Image]
) -> None:
    checkpoint, folder = paddle
    page = picture(700, 500)
    reference = run_reference(checkpoint, folder, [page], steps=6)
    found = measure(folder, [page], reference)
    assert found.feature_error < 1e-4
    assert found.logit_error < 1e-4
    # The same image turned: as many tokens, at other positions.
    assert measure(folder, [picture(500, 700)], reference).logit_error > 1e-2


@pytest.fixture(scope="module")
def unlimited(tmp_path_factory: pytest.TempPathFactory, export_checkpoint: Callable[..., Path]) -> tuple[Path, Path]:
    """A checkpoint whose answers look 16 tokens back, and its export."""
    from tools.checkpoints import write_random_checkpoint
    from tools.unlimited_checkpoints import UNLIMITED_OCR, UnlimitedSizes

    sizes = UnlimitedSizes(patch=4, image_size=256, clip_image_size=224, layers=2, window=16)
    checkpoint = write_random_checkpoint(tmp_path_factory.mktemp("unlimited"), sizes, layout=UNLIMITED_OCR)
    return checkpoint, export_checkpoint(checkpoint, model_id="unlimited-ocr", family="unlimited-ocr")


def test_a_long_answer_is_compared_token_by_token_far_beyond_its_window(
    unlimited: tuple[Path, Path], picture: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, folder = unlimited
    steps = default_steps(Manifest.load(folder))
    assert steps == 64 + 2 * 16
    page = picture(150, 100)
    reference = run_reference(checkpoint, folder, [page], steps)
    found = measure(folder, [page], reference)
    assert found.logit_error < 1e-4
    assert found.beyond is not None
    assert found.beyond.logit_error < 1e-4
    assert found.beyond.top_1_agreement == 1
    # Fed without its window, the same export is right up to its end and wrong behind that.
    monkeypatch.setattr("models.unlimited_ocr.family.UnlimitedOcr.window", lambda self, settings: None)
    full = measure(folder, [page], reference)
    assert full.beyond is None
    assert full.logit_error > 1e-3
    short = replace(reference, tokens=reference.tokens[:17], logits=reference.logits[:17])
    assert measure(folder, [page], short).logit_error < 1e-4


def test_several_pages_are_compared_in_one_answer(
    unlimited: tuple[Path, Path], picture: Callable[..., Image.Image], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    checkpoint, folder = unlimited
    for number in (1, 2):
        picture(300, 200, number).save(tmp_path / f"{number}.png")
    images = [argument for number in (1, 2) for argument in ("--image", str(tmp_path / f"{number}.png"))]
    assert main([str(checkpoint), str(folder), *images, "--task", "pages", "--steps", "24"]) == 0
    whole, beyond = capsys.readouterr().out.splitlines()[2:]
    assert "beyond the window" in beyond
    for row in (whole, beyond):
        error = float(row.split("|")[4])
        assert 0 < error < 1e-4


def test_another_checkpoint_is_far_away(
    random_model_folder: Path, tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    from tools.checkpoints import write_random_checkpoint

    other = write_random_checkpoint(tmp_path, seed=7)
    page = picture(300, 300)
    found = measure(random_model_folder, [page], run_reference(other, random_model_folder, [page], steps=6))
    assert found.feature_cosine < 0.5
    assert found.logit_error > 0.1


def test_the_table_has_a_row_for_each_export(
    paddle: tuple[Path, Path], tmp_path: Path, picture: Callable[..., Image.Image], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, folder = paddle
    picture(300, 200).save(tmp_path / "page.png")
    arguments = [str(checkpoint), str(folder), str(folder), "--image", str(tmp_path / "page.png"), "--steps", "3"]
    assert main(arguments) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 4
    assert "| 1.000000 |" in rows[2]


def test_a_layout_detector_is_compared_in_halves_and_as_a_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], picture: Callable[..., Image.Image]
) -> None:
    pytest.importorskip("optimum")
    from export.layout.pipeline import DetectorJob, export_detector
    from export.source import Source
    from tools.layout_checkpoints import write_layout_checkpoint

    checkpoint = write_layout_checkpoint(tmp_path / "checkpoint", "v3")
    source = Source(checkpoint, str(checkpoint), None, "directory")
    _, folder = export_detector(DetectorJob(source, lambda detector: tmp_path / "f32"), lambda line: None)
    picture(300, 500).save(tmp_path / "page.png")
    assert main([str(checkpoint), str(folder), "--image", str(tmp_path / "page.png")]) == 0
    row = capsys.readouterr().out.splitlines()[2].split("|")
    assert row[1].strip() == "pp-doclayout-v3"
    encoder, logits, boxes, order, masks = (float(cell) for cell in row[2:7])
    assert encoder < 1e-3
    assert max(logits, masks) < 1e-4
    assert boxes < 1e-2
    assert order < 2e-3
    assert row[7].strip().startswith("all ")
