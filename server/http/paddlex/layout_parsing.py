"""POST /layout-parsing: a document in, its pages out, as PaddleX's clients and Open WebUI's PaddleOCR-VL engine do.

The document goes the way of a ``file`` part of a chat message, with the task ``document``.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import falcon

from models.blocks import Block
from models.layout.join_tables import join_tables
from models.layout.page_rules import PLAIN, PageRules
from models.layout.place import has_detector
from models.layout.step import rules_of
from models.layout.task import DOCUMENT
from models.registration import ModelEntry
from models.registry import default_element, element_tasks
from runtime.library.source import ModelSource
from runtime.requests import Finished
from server.api_errors import ApiError, BadRequest, TooLarge, translate
from server.fetch import Fetcher
from server.writers.result import block_of

from ..asked import Asked
from ..endpoint import Endpoint
from ..images import decode_data_url
from ..messages import Prompt
from ..running import RunningRequest
from ..schema import ReadingOptions
from .pages import PaddlexPageWriter
from .schema import LayoutParsingRequest

# Blocks are read to their end, unless their task has its own budget.
BUDGET = {"max_new_tokens": 8192}


class LayoutParsing:
    """PaddleX's service."""

    path = "/layout-parsing"

    def __init__(self, endpoint: Endpoint, source: ModelSource, fetcher: Fetcher, max_bytes: int, model: str) -> None:
        """model : the model of requests that name none."""
        self._endpoint = endpoint
        self._source, self._fetcher, self._max_bytes, self._model = source, fetcher, max_bytes, model

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        try:
            with self._endpoint.exchange(req, resp, self.path, "file") as exchange:
                body = exchange.body(LayoutParsingRequest)
                body.check()
                asked, rules = self._asked(body)
                body.file = ""  # the body lives as long as the answer
                running = exchange.start(asked)
                resp.media = _answer(body, rules, running, *running.collect())
        except Exception as error:
            known = translate(error)
            if known is None:
                raise
            resp.status = falcon.code_to_http_status(known.status_code)
            resp.set_headers(known.headers or {})
            resp.media = _failure(str(resp.get_header("X-Request-Id")), known)
            req.context["reason"] = known.message

    def _asked(self, body: LayoutParsingRequest) -> tuple[Asked, PageRules | None]:
        """The request in this server's terms, and its layout rules; None where pages are read whole."""
        entry = self._source.entry(body.model or self._model)
        task = _task(body, entry)
        rules = rules_of(entry).change(body.rules()) if task == DOCUMENT else None
        reading = ReadingOptions(task=task, boxes=True, rules=body.rules())
        url = f"data:application/octet-stream;base64,{base64.b64encode(self._content(body.file.strip())).decode()}"
        settings = {**body.settings(), "orient": "off"}  # useDocOrientationClassify is refused where it is true
        return Asked(Prompt(files=[url]), body.model or self._model, settings, reading, floor=BUDGET), rules

    def _content(self, file: str) -> bytes:
        """The bytes of the document.

        Raises
        ------
        ApiError
            for invalid base64, and a document that is too large or cannot be fetched.
        """
        if file[:8].lower().startswith(("http://", "https://")):
            return self._fetcher.fetch(file, time.monotonic() + self._fetcher.timeout)
        if file[:5].lower() == "data:":
            return decode_data_url(file, self._max_bytes, "file", "file")
        if len(file) * 3 // 4 > self._max_bytes + 3:
            raise TooLarge(f"the file has more than {self._max_bytes >> 20} MiB (--max-image-mb)")
        try:
            return base64.b64decode("".join(file.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRequest("file is neither base64 nor an http(s) address", param="file") from error


def _answer(
    request: LayoutParsingRequest, rules: PageRules | None, running: RunningRequest, text: str, finished: Finished
) -> dict[str, Any]:
    """The whole answer. rules : None where the pages are read whole."""
    report = running.report()
    pages: Sequence[Mapping[str, Any]] = report["pages"]
    blocks: dict[int, list[Block]] = {page["page"]: [] for page in pages}
    for entry in report.get("blocks", ()):
        blocks[entry["page"]].append(block_of({name: value for name, value in entry.items() if name != "page"}))
    for page in pages:
        if rules is None or not blocks[page["page"]]:
            whole = Block("text", text[page["start"] : page["end"]], (0, 0, page["width"], page["height"]), "ocr")
            blocks[page["page"]] = [whole] if whole.text else []
    if request.restructurePages and request.mergeTables is not False:
        blocks = dict(zip(blocks, join_tables(list(blocks.values())), strict=True))
    results = [_page(request, rules or PLAIN, page, blocks[page["page"]], running, len(pages)) for page in pages]
    sizes = [{"width": page["width"], "height": page["height"]} for page in pages]
    info = {**sizes[0], "type": "image"} if request.fileType == 1 and len(sizes) == 1 else {
        "type": "pdf", "numPages": len(sizes), "pages": sizes,
    }  # fmt: skip
    return {
        "logId": running.record.id,
        "errorCode": 0,
        "errorMsg": "Success",
        "result": {"layoutParsingResults": results, "dataInfo": info},
    }


def _task(body: LayoutParsingRequest, entry: ModelEntry) -> str | None:
    """The task that the request means; None: the model's default."""
    if body.useLayoutDetection:
        return DOCUMENT
    if body.useLayoutDetection is None and body.promptLabel is None:
        return DOCUMENT if has_detector(entry) else None
    label = body.promptLabel or "ocr"
    return label if label in element_tasks(entry) else default_element(entry) if label == "ocr" else label


def _page(
    request: LayoutParsingRequest, rules: PageRules, page: Mapping[str, Any], blocks: Sequence[Block],
    running: RunningRequest, count: int,
) -> dict[str, Any]:  # fmt: skip
    """One entry of ``layoutParsingResults``."""
    size = page["width"], page["height"]
    writer = PaddlexPageWriter(blocks, size, rules, partial(running.draw, page["page"]))
    return {
        "prunedResult": {
            "page_count": count, "width": size[0], "height": size[1], "model_settings": request.told(rules),
            "parsing_res_list": writer.parsed(formatted=bool(request.formatBlockContent)),
            "layout_det_res": {"boxes": writer.found()},
            **({"error": page["error"]} if "error" in page else {}),
        },
        "markdown": writer.markdown(pretty=request.prettifyMarkdown is not False),
        "outputImages": {"layout_det_res": writer.overlay()} if request.visualize and blocks else None,
        "inputImage": None,
        "exports": None,
    }  # fmt: skip


def _failure(log_id: str, error: ApiError) -> dict[str, Any]:
    return {"logId": log_id, "errorCode": error.status_code, "errorMsg": error.message}
