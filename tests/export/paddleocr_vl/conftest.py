"""Pairs that all tests of the family share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.export.paddleocr_vl.pairs import SIZES, Pair, PairOf
from tools.paddle_checkpoints import (
    V1_0,
    PaddleSizes,
    Revision,
    write_paddle_checkpoint,
)


@pytest.fixture(scope="session")
def pair_of(tmp_path_factory: pytest.TempPathFactory, export_checkpoint: Callable[..., Path]) -> PairOf:
    made: dict[tuple[PaddleSizes, Revision, int], Pair] = {}

    def make(sizes: PaddleSizes = SIZES["default"], revision: Revision = V1_0, seed: int = 0) -> Pair:
        key = (sizes, revision, seed)
        if key not in made:
            checkpoint = write_paddle_checkpoint(tmp_path_factory.mktemp("paddle"), sizes, revision, seed=seed)
            made[key] = Pair(checkpoint, export_checkpoint(checkpoint, "f32", "paddleocr-vl", "paddleocr-vl"))
        return made[key]

    return make
