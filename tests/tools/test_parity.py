"""The parity report on float32 exports of small checkpoints, of each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torch")

from tools.parity import main, measure, run_reference


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
    reference = run_reference(random_checkpoint, random_model_folder, page, steps=6)
    assert len(reference.tokens) == len(reference.logits) == 7
    found = measure(random_model_folder, page, reference)
    assert found.feature_error < 1e-4
    assert found.logit_error < 1e-4
    assert found.top_1_agreement == 1


def test_paddle_is_compared_at_its_own_positions(
    paddle: tuple[Path, Path], picture: Callable[..., Image.Image]
) -> None:
    checkpoint, folder = paddle
    page = picture(700, 500)
    reference = run_reference(checkpoint, folder, page, steps=6)
    found = measure(folder, page, reference)
    assert found.feature_error < 1e-4
    assert found.logit_error < 1e-4
    # The same image turned: as many tokens, at other positions.
    assert measure(folder, picture(500, 700), reference).logit_error > 1e-2


def test_another_checkpoint_is_far_away(
    random_model_folder: Path, tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    from tools.checkpoints import write_random_checkpoint

    other = write_random_checkpoint(tmp_path, seed=7)
    page = picture(300, 300)
    found = measure(random_model_folder, page, run_reference(other, random_model_folder, page, steps=6))
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
