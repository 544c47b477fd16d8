"""The page at ``/``: drop a document, and watch its text grow.

Serves the page's files, and does on the server what a library does better there: page images of documents, clean HTML
of Markdown, MathML of formulas, Word files. Text is read through the public ``/v1`` API.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import falcon

from models.config import Config
from runtime.documents import Workers
from runtime.library.source import ModelSource
from server.options import ServerOptions
from server.writers import FORMATS

from ..admission import Admission
from ..in_flight import RequestsInFlight

__all__ = ["install", "missing"]

NEEDED = FORMATS["docx"].needs  # packages of the extra web
_INSTALL = "pip install 'ocr-onnx[web]'"


def install(
    add: Callable[[str, Any], None], config: Config, options: ServerOptions, source: ModelSource,
    in_flight: RequestsInFlight, workers: Workers, admission: Admission,
) -> None:  # fmt: skip
    """Add the routes of the page; without the extra ``web``, a page that says how to install it.

    add : takes a path and its resource.
    """
    if missing():
        add("/", Explanation())
        return
    from . import resources

    add("/", resources.PageFile())
    add("/web/{name}", resources.PageFile())
    add("/web/config", resources.WebConfig(config, options, source))
    add("/web/pages", resources.WebPages(in_flight, options, workers, admission))
    add("/web/render", resources.WebRender())
    add("/web/download", resources.WebDownload(in_flight, options, workers, admission))


def missing() -> list[str]:
    """Packages of the extra ``web`` that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


class Explanation:
    """``/`` where the page's packages are not installed."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = "text/html; charset=utf-8"
        resp.set_header("Content-Security-Policy", "default-src 'none'")
        resp.text = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>ocr-onnx</title><h1>ocr-onnx</h1>'
            f"<p>The API is at <code>/v1</code>. For a page to drop documents on, install its packages on the server "
            f"and start it again:</p><pre>{_INSTALL}</pre></html>"
        )
