"""The real server process with scripted models whose task decides what they say.

``markdown``: a title, a table and a figure with their boxes. ``free``: a few words, but a page of 140 to 379 pixels'
width is never read to its end. ``ocr``: nothing. ``figure``: what a hostile page would have a model write.
``describe``: words without end.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import runtime.model
from models.deepseek_ocr.output import TASKS
from models.paths import cache_dir
from runtime.library.source import ModelSource
from runtime.requests import Request
from server.http.cli import main
from tests.server.fake import ScriptedModel, Step

MARKDOWN = (
    "<|ref|>title<|/ref|><|det|>[[100, 50, 900, 120]]<|/det|>\n# Annual report\n\n",
    "<|ref|>image<|/ref|><|det|>[[100, 200, 500, 400]]<|/det|>\n\n",
    "<|ref|>text<|/ref|><|det|>[[100, 450, 900, 600]]<|/det|>\nGrowth was \\(x^2\\) in *all* regions.\n\n",
    "<|ref|>table<|/ref|><|det|>[[100, 700, 900, 900]]<|/det|>\n<table><tr><td>a</td><td>b</td></tr></table>\n",
)
HOSTILE = (
    "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"
    "[link](javascript:window.broken=1) <a href=' javascript:window.broken=1'>x</a>"
    "<svg onload='window.broken = 1'><style>@import 'http://127.0.0.1:9/x.css'</style></svg>"
    "<math><mtext><table><mglyph><style><img src=x onerror='window.broken = 1'></style></mglyph></table></mtext></math>"
    "<iframe srcdoc='<script>parent.broken = 1</script>'></iframe><form action=/x><button>go</button></form>"
    "![](http://127.0.0.1:9/pixel.png) <b onclick='window.broken = 1' style='position:fixed'>bold</b>"
)


def script(request: Request) -> Iterable[Step]:
    task = next((name for name, prompt in TASKS.items() if prompt == request.prompt), "free")
    if task == "markdown":
        yield from MARKDOWN
    elif task == "figure":
        yield HOSTILE
    elif task == "describe":
        for number in itertools.count():
            yield f"{number} "
            yield 0.02
    elif task == "free":
        while 140 <= request.images[0].width < 380:
            yield 0.05
        yield from ("Hello, ", "page.")


def open_model(folder: Path, *, max_queue: int, slots: int | None, **_: Any) -> ScriptedModel:
    return ScriptedModel(script, slots=slots or 4, max_queue=max_queue, keeps=False)


if __name__ == "__main__":
    runtime.model.Model.open = open_model  # type: ignore[assignment, method-assign]
    ModelSource.check = lambda self, key: None  # type: ignore[method-assign]  # the folders below are empty
    folder = cache_dir() / "models" / "deepseek-ocr" / "onnx" / "q8"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text("{}")
    sys.exit(main())
