"""Fixtures that several packages' tests share: random checkpoints, their exports, pictures.

Tests may be spread over processes (``tools/dev test`` takes three): what is made once for a session is then made once
for all of them, each process computes on one thread, and tests marked ``alone`` are left to a run of their own.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from tests.kept_workers import KeptWorkers

SHARED = Path(__file__).resolve().parents[2] / "shared"

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test asserts a time, so that one on a busy machine does not fail for it.
hypothesis.settings.register_profile(
    "unhurried", hypothesis.settings.default, deadline=None,
    suppress_health_check=[*hypothesis.settings.default.suppress_health_check, hypothesis.HealthCheck.too_slow],
)  # fmt: skip
hypothesis.settings.load_profile("unhurried")

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


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--alone``: which half of a run that is made in two steps this one is."""
    parser.addoption(
        "--alone", choices=("with", "without", "only"), default="with",
        help="tests marked alone: run them with all others (default), leave them out, or run only them",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Several processes with a thread for each core each would only wait for one another."""
    if getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's and OpenBLAS's, in the processes to come
    if "PYTEST_XDIST_WORKER" in os.environ:
        from runtime import providers

        providers.default_threads = lambda: 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is not quick, and leave out what takes minutes and is only run when it is asked for."""
    asked = "cluster" in config.option.markexpr
    for item in items:
        if item.get_closest_marker("cluster") and not asked:
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with: tools/dev test -m cluster"))
        if not item.nodeid.startswith(QUICK) or "200_random_sizes" in item.nodeid:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.alone)
    asked_for = config.option.alone
    if asked_for != "with":
        others = [item for item in items if (item.get_closest_marker("alone") is None) == (asked_for == "only")]
        config.hook.pytest_deselected(items=others)
        left_out = set(others)
        items[:] = [item for item in items if item not in left_out]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import only files that have a test to run: those of the half that runs alone do without torch."""
    if config.option.markexpr == "not slow" and collection_path.suffix == ".py":
        return None if collection_path.relative_to(config.rootpath).as_posix().startswith(QUICK) else True
    if config.option.alone != "only":
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    words = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return None if any("pytest.mark.alone" in text or "pytest.mark.ray" in text for text in words) else True


@pytest.fixture(scope="session", autouse=True)
def httpx_is_patient_and_has_one_context_of_tls() -> Iterator[None]:
    """Its own 5 seconds are too few where the machine is busy, and a context costs each call 20 ms, even for http."""
    httpx = sys.modules.get("httpx")  # imported by the tests that use it
    with pytest.MonkeyPatch.context() as patch:
        if httpx is not None:
            context = httpx.create_ssl_context()
            for name in ("request", "get", "post", "put", "delete", "stream"):
                patch.setattr(httpx, name, partial(getattr(httpx, name), verify=context, timeout=120))
        yield


@pytest.fixture(scope="module", autouse=True)
def what_is_here_to_stay() -> None:
    """Take what a module's tests find in memory, imported or made before, out of the garbage collector's sight.

    A server collects after each load, each unloading and each busy time, and with torch and transformers beside it that
    took 21 of the 24 seconds of test_ceilings and test_tasks.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def workers_of_the_file() -> Iterator[KeptWorkers]:
    kept = KeptWorkers()
    yield kept
    kept.end()


@pytest.fixture
def lent_workers(workers_of_the_file: KeptWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this test are those of the test before, where they are well: a picture is read by a process."""
    monkeypatch.setattr("runtime.documents.workers.Worker", workers_of_the_file)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """What a test's command or server sets up for its log ends with the test: a quiet one would quieten the others."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    levels = {logger: logger.level for logger in _loggers()}
    yield
    for logger in _loggers():
        before = levels.get(logger, logging.NOTSET)
        if logger.level != before:  # setLevel goes through all loggers, of which torch and others bring a thousand
            logger.setLevel(before)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)


def _loggers() -> list[logging.Logger]:
    named = logging.Logger.manager.loggerDict.values()
    return [logging.getLogger(), *(logger for logger in named if isinstance(logger, logging.Logger))]


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """``make_once(name, make)``: a folder that the first process that wants it makes, for all of the session."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, ready = base / name, base / f"{name}.ready"
        with FileLock(base / f"{name}.lock"):
            if not ready.exists():
                make(folder)
                ready.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def random_checkpoint(make_once: MakeOnce) -> Path:
    """A scaled-down DeepSeek-OCR checkpoint with random weights, in the published layout."""
    from tools.checkpoints import write_random_checkpoint

    return make_once("checkpoint", write_random_checkpoint)


@pytest.fixture(scope="session")
def export_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Export a checkpoint folder and return the published folder; ``target``: where it is to be."""
    from export.pipeline import Job, export_model
    from export.source import Source

    def export(
        checkpoint: Path, dtype: str = "f32", model_id: str = "deepseek-ocr", family: str = "deepseek-ocr",
        target: Path | None = None, **options: Any,
    ) -> Path:  # fmt: skip
        target = target or tmp_path_factory.mktemp("export") / dtype
        source = Source(checkpoint, str(checkpoint), None, "directory")
        export_model(Job(model_id, family, source, dtype, target, **options), lambda line: None)
        return target

    return export


@pytest.fixture(scope="session")
def random_model_folder(
    random_checkpoint: Path, export_checkpoint: Callable[..., Path], make_once: MakeOnce
) -> Path:  # fmt: skip
    """The float32 export of ``random_checkpoint``."""
    return make_once("random_model", lambda folder: export_checkpoint(random_checkpoint, target=folder / "f32")) / "f32"


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
