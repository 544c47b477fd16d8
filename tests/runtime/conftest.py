"""A float32 export with random weights, opened, and a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from runtime import Model


@pytest.fixture(scope="module")
def model(random_model_folder: Path) -> Iterator[Model]:
    with Model.open(random_model_folder, device="cpu", slots=8) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(picture: Callable[..., Image.Image]) -> Image.Image:
    return picture(300, 200)
