"""Fixtures that several packages' tests share: random checkpoints, their exports, pictures."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[2] / "shared"


# What is tested without programs of its own and without whole models: a contributor's loop. All else is slow.
_QUICK_OF_RUNTIME = "buffers candidates confidence engine kv_cache logits machine planning rotary scheduler text"
QUICK = (
    "tests/models/",
    "tests/test_module_graph.py",
    *(f"tests/runtime/test_{name}.py" for name in _QUICK_OF_RUNTIME.split()),
    *(f"tests/server/test_{name}.py" for name in ("ceilings", "messages")),
    *(f"tests/{name}.py" for name in ("command/test_inputs", "writers/test_formats", "writers/test_render")),
    *(f"tests/export/test_{name}.py" for name in ("checkpoint", "layers")),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is not quick, and leave out what takes minutes and is only run when it is asked for."""
    asked = "cluster" in config.option.markexpr
    for item in items:
        if item.get_closest_marker("cluster") and not asked:
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with: tools/dev test -m cluster"))
        if not item.nodeid.startswith(QUICK) or "200_random_sizes" in item.nodeid:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take what all test modules imported out of the garbage collector's sight.

    A server collects after each load, each unloading and each busy time, and with torch and transformers beside it that
    took 21 of the 24 seconds of test_ceilings and test_tasks.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """What a test's command or server sets up for its log ends with the test: a quiet one would quieten the others."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    levels = {logger: logger.level for logger in _loggers()}
    yield
    for logger in _loggers():
        logger.setLevel(levels.get(logger, logging.NOTSET))
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)


def _loggers() -> list[logging.Logger]:
    named = logging.Logger.manager.loggerDict.values()
    return [logging.getLogger(), *(logger for logger in named if isinstance(logger, logging.Logger))]


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scaled-down DeepSeek-OCR checkpoint with random weights, in the published layout."""
    from tools.checkpoints import write_random_checkpoint

    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def export_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Export a checkpoint folder and return the published folder."""
    from export.pipeline import Job, export_model
    from export.source import Source

    def export(
        checkpoint: Path, dtype: str = "f32", model_id: str = "deepseek-ocr", family: str = "deepseek-ocr",
        **options: Any,
    ) -> Path:  # fmt: skip
        target = tmp_path_factory.mktemp("export") / dtype
        source = Source(checkpoint, str(checkpoint), None, "directory")
        export_model(Job(model_id, family, source, dtype, target, **options), lambda line: None)
        return target

    return export


@pytest.fixture(scope="session")
def random_model_folder(random_checkpoint: Path, export_checkpoint: Callable[..., Path]) -> Path:
    """The float32 export of ``random_checkpoint``."""
    return export_checkpoint(random_checkpoint)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Make a reproducible picture of soft coloured noise: ``picture(width, height, seed)``."""

    def make(width: int, height: int, seed: int = 0) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture(scope="session")
def real_tokenizer() -> Path:
    """DeepSeek-OCR's own tokenizer.json, which is too large for the repository."""
    path = SHARED / "checkpoints" / "deepseek-ocr" / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"the real tokenizer is not at {path}")
    return path
