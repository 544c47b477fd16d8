"""The real server process with scripted models: ``python -m tests.server.fake_server`` takes ocr-onnx-serve's flags.

The prompt decides what a model does. Words with a meaning: ``held`` (40 pieces, all but the first when the file that
``GATE`` names is there), ``brisk`` (40 pieces, 10 ms apart), ``silent`` (2 s before the first piece), ``endless``,
``broken`` (the engine fails); ``Multi page`` reads all pages.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import runtime.model
import server.http.door
import server.http.running
from models.paths import cache_dir
from runtime.library.source import ModelSource
from runtime.requests import Request
from server.http.cli import main
from tests.server.fake import ScriptedModel, Step


def script(request: Request) -> Iterable[Step]:
    if "broken" in request.prompt:
        raise RuntimeError("scripted failure")
    if "Multi page" in request.prompt:
        yield from all_pages(request)
        return
    if "silent" in request.prompt:
        yield 2.0
    if "held" in request.prompt:
        yield "0 "
        while not os.path.exists(os.environ["GATE"]):
            yield 0.02
        for number in range(1, 40):
            yield f"{number} "
    elif "brisk" in request.prompt:
        for number in range(40):
            yield f"{number} "
            yield 0.01
    elif "endless" in request.prompt:
        for number in itertools.count():
            yield f"{number} "
            yield 0.02
    else:
        yield from ("Grüße", ", ", "世界", ".")


def all_pages(request: Request) -> Iterable[Step]:
    """Each page says the number that is its colour (see ``tests.command.conftest.page_of``) and where it stands."""
    for i, page in enumerate(request.images):
        number = page.getpixel((0, 0))[0]  # type: ignore[index]
        yield from ["<PAGE>"] if i else []
        yield "<|det|>image [0, 0, 499, 999]<|/det|>"
        yield f"page {number}"


def open_model(folder: Path, *, max_queue: int, slots: int | None, **_: Any) -> ScriptedModel:
    return ScriptedModel(script, slots=slots or 4, max_queue=max_queue, keeps=False)


if __name__ == "__main__":
    runtime.model.Model.open = open_model  # type: ignore[assignment, method-assign]
    ModelSource.check = lambda self, key: None  # type: ignore[method-assign]  # the folders below are empty
    server.http.running.PING_SECONDS = 0.5
    if "HASTY" in os.environ:  # for tests of slow clients
        server.http.door.HEADER_SECONDS = server.http.door.GRACE_SECONDS = 3.0
    for model_id, dtype in (
        ("deepseek-ocr", "q8"),
        ("tiny-ocr", "f32"),
        ("unlimited-ocr", "q8"),
    ):  # the defaults on a CPU
        folder = cache_dir() / "models" / model_id / "onnx" / dtype
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text("{}")
    sys.exit(main())
