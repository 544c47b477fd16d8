"""A float32 export with random weights, opened, a page, and engines over scripted models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from runtime import Model
from runtime.engine import Engine
from tests.runtime.scripted_engine import FakeModel


@pytest.fixture(scope="module")
def model(random_model_folder: Path) -> Iterator[Model]:
    with Model.open(random_model_folder, device="cpu", slots=8) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(picture: Callable[..., Image.Image]) -> Image.Image:
    return picture(300, 200)


@pytest.fixture
def start() -> Iterator[Callable[..., Engine]]:
    engines: list[tuple[Engine, FakeModel]] = []

    def make(model: FakeModel, slots: int = 4, max_queue: int = 64, **options: int) -> Engine:
        engines.append((Engine(model, model, slots=slots, max_queue=max_queue, **options), model))
        return engines[-1][0]

    yield make
    for engine, model in engines:
        model.let_go()
        engine.close()
