"""What the page at ``/`` needs beside the ``/v1`` API. Nothing of a document is kept after the answer.

``GET /`` and ``/web/NAME`` are the page's own files. ``GET /web/config``: models, limits, and the settings of a request
with their defaults. ``POST /web/pages``: a document's pages as pictures. ``POST /web/render``: a page's text as clean
HTML. ``POST /web/download``: the pages of a document in one file, in any of the formats that ``read`` writes.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import Annotated, Any

import falcon
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from models import precedence
from models.blocks import Block, Kind
from models.config import Config
from models.families import FAMILIES
from models.family import TEXT_SLOT
from models.grounding import Box
from models.model_errors import InvalidInput
from models.registry import defaults_of, tasks_of
from models.settings import FAMILY_SETTINGS, InferenceSettings
from runtime.documents import Document, Stop, Stopped, Workers, open_document, open_picture, parse_pages
from runtime.library.source import ModelSource
from server.api_errors import ApiError, BadRequest, ClientGone, TooLarge
from server.options import ServerOptions
from server.writers import PageResult, page_blocks, render

from ..admission import PATIENCE, Admission
from ..ceilings import Ceilings
from ..endpoint import read_json
from ..in_flight import RequestsInFlight
from ..schema import parse
from ..sse import EventStream
from . import downloads

FILES = {
    "page.css": "text/css",
    "main.js": "text/javascript",
    "api.js": "text/javascript",
    "documents.js": "text/javascript",
    "reader.js": "text/javascript",
    "viewer.js": "text/javascript",
    "texts.js": "text/javascript",
    "drawer.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}

# Scripts, styles and requests of this origin only, nothing inline: a model's text cannot run even if it gets through
# the cleaning.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_AT_ONCE = 8  # pages drawn for one request of the browser
_RENDER_MB = 4
_DOWNLOAD_MB = 100  # megabytes of a document's texts and figures together
_SHOWN_KINDS = ("integer", "number", "boolean")  # types of settings to show: lists are for programs


class PageFile:
    """``/`` and ``/web/NAME``: the page's own files, open to everybody, since the key is typed there."""

    def on_get(self, req: falcon.Request, resp: falcon.Response, name: str = "index.html") -> None:
        if name != "index.html" and name not in FILES:
            raise ApiError(404, f"there is no file {name[:60]!r}", code="not_found")
        content, tag = _file(name)
        resp.set_headers(_SAFE)
        resp.set_header("Cache-Control", "no-cache")
        resp.etag = tag
        if any(one in ("*", tag) for one in req.if_none_match or ()):
            resp.status = falcon.HTTP_304
            return
        resp.content_type = f"{FILES.get(name, 'text/html')}; charset=utf-8"
        resp.data = content


class WebConfig:
    """``GET /web/config``: what the page must know first."""

    def __init__(self, config: Config, options: ServerOptions, source: ModelSource) -> None:
        self._config, self._options, self._source = config, options, source
        self._ceilings = Ceilings.of(options).by_setting

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        model_id = req.get_param("model") or self._options.model
        entry = self._source.entry(model_id)
        inference = {**defaults_of(entry.family), **self._config.inference}
        settings = precedence.resolve(inference, entry.defaults, self._options.inference_flags, {})
        resp.set_header("Cache-Control", "no-store")
        resp.media = {
            "model": model_id,
            "settings": [self._describe(setting, settings) for setting in _settings_of(entry.family)],
            "text_tasks": [name for name, prompt in tasks_of(entry.family).items() if TEXT_SLOT in prompt],
            "at_once": self._options.slots or 2,
            "max_file_mb": self._options.max_image_mb,
            "max_pages": self._options.max_pages,
        }

    def _describe(self, setting: precedence.Setting, settings: InferenceSettings) -> dict[str, Any]:
        value = settings.value(setting.name)
        return {
            "name": setting.name,
            "kind": setting.kind,
            "help": setting.help,
            "default": value,
            "default_text": setting.default_text if value is None else None,
            "limit": self._ceilings.get(setting.name),
        }


class WebPages:
    """``POST /web/pages``: a document's pages as pictures, drawn one after the other, a JSON object a line.

    The body is the file itself, as ``application/octet-stream``: a type that pages of other origins may not send
    unasked. Query: ``pages`` (such as ``1-5,9``), ``skip`` of these.
    """

    def __init__(
        self, in_flight: RequestsInFlight, options: ServerOptions, workers: Workers, admission: Admission
    ) -> None:
        self._in_flight, self._options = in_flight, options
        self._workers, self._admission = workers, admission

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        limit = self._options.max_image_mb << 20
        if (req.content_type or "").partition(";")[0].strip().lower() != "application/octet-stream":
            raise ApiError(415, "the Content-Type must be application/octet-stream", code="unsupported_media_type")
        if (req.content_length or 0) > limit:
            raise TooLarge(f"the file has {req.content_length} bytes; the limit is {limit >> 20} MiB (--max-image-mb)")
        skip = req.get_param_as_int("skip", min_value=0) or 0
        is_gone = req.env.get("waitress.client_disconnected", lambda: False)
        with ExitStack() as held:
            held.enter_context(self._in_flight.place())
            content = req.bounded_stream.read(limit)
            if not content:
                raise BadRequest("the file is empty; it has 0 bytes", code="invalid_file")
            try:
                document, indices = self._open(content, req.get_param("pages"), is_gone)
            except Stopped:
                raise ClientGone from None
            held.callback(document.close)
            kept = held.pop_all()
        resp.content_type = "application/x-ndjson; charset=utf-8"
        resp.set_header("Cache-Control", "no-store")
        resp.stream = EventStream(self._drawn(document, indices, skip, is_gone), kept.close)

    def _open(self, content: bytes, pages: str | None, is_gone: Stop) -> tuple[Document, list[int]]:
        """The document and its chosen pages, counted from 0."""
        most = self._options.max_image_megapixels * 1_000_000
        try:
            document = open_document(content, name="the file", max_pixels=most, workers=self._workers, stop=is_gone)
        except InvalidInput as error:
            raise BadRequest(str(error), code="invalid_file") from error
        try:
            return document, parse_pages(pages, document.page_count) if pages else list(range(document.page_count))
        except InvalidInput as error:
            document.close()
            raise BadRequest(str(error), param="pages", code="invalid_pages") from error

    def _drawn(self, document: Document, indices: list[int], skip: int, is_gone: Stop) -> Iterator[bytes]:
        """A line with the page count and the chosen numbers, then one for each page: its picture, or an error."""
        yield _line({"count": document.page_count, "chosen": [index + 1 for index in indices]})
        for index in indices[skip : skip + _AT_ONCE]:
            try:
                yield _line({"page": index + 1, "image": self._picture(document, index, is_gone)})
            except (InvalidInput, ApiError) as error:
                yield _line({"page": index + 1, "error": error.message if isinstance(error, ApiError) else str(error)})
            except (Stopped, ClientGone):
                return

    def _picture(self, document: Document, index: int, is_gone: Stop) -> str:
        """A page as a lossless data: URL: the model gets the same pixels."""
        width, height = document.size(index, is_gone)
        with self._admission.take("pixels", width * height, wait=PATIENCE, is_gone=is_gone):
            stream = io.BytesIO()
            document.page(index, is_gone).save(stream, "PNG", compress_level=1)
        return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


_Pixel = Annotated[int, Field(ge=-1_000_000, le=1_000_000)]
_Place = Annotated[tuple[_Pixel, _Pixel, _Pixel, _Pixel], Field(strict=False)]  # JSON has no tuples


class BoxText(_Strict):
    """A box of the answer: label, text and place."""

    label: str
    text: str
    box: _Place | None = None  # x0, y0, x1, y1 in pixels of the page as it was read


class BlockText(BaseModel):
    """A block of the answer, as in ``ocr.blocks``; other fields are ignored."""

    model_config = ConfigDict(strict=True)

    kind: Kind
    text: str
    box: _Place | None = None
    label: str = ""
    confidence: float | None = Field(None, ge=0, le=1)
    level: int = Field(0, ge=0, le=100)


class PageText(_Strict):
    """One page's text as the model wrote it, its places, and what of its picture the format needs (base64).

    figures : cut out of the page, JPEG or PNG. picture : the whole page, for PDF. page : its number, by default its
    index from 1.
    width, height : of the page as it was read.
    """

    text: str
    boxes: list[BoxText] = Field(default_factory=list, max_length=5_000)
    blocks: list[BlockText] = Field(default_factory=list, max_length=5_000)
    figures: list[str] = Field(default_factory=list, max_length=500)
    picture: str | None = None
    page: int | None = Field(None, ge=1, le=1_000_000)
    width: int = Field(0, ge=0, le=1_000_000)
    height: int = Field(0, ge=0, le=1_000_000)

    def html(self) -> str:
        """Clean HTML; see ``render.page_html``."""
        return render.page_html(self.text, [(box.label, box.text) for box in self.boxes])

    def result(self, number: int) -> PageResult:
        """The result for writers. number : of the page, where ``page`` is None."""
        boxes = tuple(Box(box.label, box.text, box.box) for box in self.boxes if box.box is not None)
        blocks = [Block(**dict(block)) for block in self.blocks]
        return PageResult(
            self.page or number, "done", width=self.width, height=self.height, text=self.text, boxes=boxes,
            blocks=page_blocks(self.text, boxes, blocks), finish_detail="eos",
        )  # fmt: skip


class Download(_Strict):
    """A document's pages, to be put into one file."""

    name: str = Field(max_length=300)
    format: str
    pages: list[PageText] = Field(max_length=5_000)


class WebRender:
    """``POST /web/render``: a page's text as clean HTML."""

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        page = parse(read_json(req, _RENDER_MB << 20), PageText)
        resp.set_header("Cache-Control", "no-store")
        resp.media = {"html": page.html()}


class WebDownload:
    """``POST /web/download``: the pages as one file."""

    def __init__(
        self, in_flight: RequestsInFlight, options: ServerOptions, workers: Workers, admission: Admission
    ) -> None:
        self._in_flight, self._options = in_flight, options
        self._workers, self._admission = workers, admission

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        wanted = parse(read_json(req, _DOWNLOAD_MB << 20), Download)
        if wanted.format not in downloads.FORMATS:
            known = ", ".join(downloads.FORMATS)
            raise BadRequest(f"format {wanted.format[:60]!r} is unknown; there are {known}", param="format")
        make, media_type = downloads.FORMATS[wanted.format]
        is_gone = req.env.get("waitress.client_disconnected", lambda: False)
        pages = [
            downloads.ReadPage(page.result(number), page.html, [_decoded(one, "figures") for one in page.figures])
            for number, page in enumerate(wanted.pages, 1)
        ]
        pictures = {page.result.page: sent.picture for page, sent in zip(pages, wanted.pages, strict=True)}
        if len(pictures) < len(pages):
            raise BadRequest("two pages have the same number; number each by its own", param="pages")
        try:
            with self._in_flight.place():
                sent = downloads.Sent(lambda page: self._drawn(pictures[page], page, is_gone))
                content = make(wanted.name, pages, sent)
        except InvalidInput as error:
            raise BadRequest(str(error), param="pages") from error
        except Stopped:
            raise ClientGone from None
        resp.set_header("Cache-Control", "no-store")
        resp.content_type = media_type
        resp.data = content

    def _drawn(self, picture: str | None, page: int, is_gone: Stop) -> Image.Image:
        """A page's picture, decoded by worker processes like all pictures of clients."""
        if picture is None:
            raise InvalidInput(f"page {page} comes without its picture, which this format is made of")
        most = self._options.max_image_megapixels * 1_000_000
        content = _decoded(picture, "picture")
        with open_picture(
            content, name=f"page {page}", max_pixels=most, workers=self._workers, stop=is_gone
        ) as document:
            width, height = document.size(0, is_gone)
            with self._admission.take("pixels", width * height, wait=PATIENCE, is_gone=is_gone):
                return document.page(0, is_gone)


def _decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BadRequest(f"{what} must be base64", param="pages") from error


@cache
def _file(name: str) -> tuple[bytes, str]:
    """A file of the page and its entity tag."""
    content = (resources.files(__package__) / "static" / name).read_bytes()
    return content, sha256(content).hexdigest()[:16]


def _settings_of(family: str) -> list[precedence.Setting]:
    """Settings of a model of ``family`` that the page shows."""
    own = FAMILIES[family].rules
    names = set() if own is None else set(own.settings.model_fields)
    return [
        setting
        for setting in precedence.SETTINGS
        if setting.kind in _SHOWN_KINDS and (setting.name not in FAMILY_SETTINGS or setting.name in names)
    ]
