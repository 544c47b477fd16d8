"""Documents of a request: opened within limits, then read page by page as one generation.

Each page is a request of its own to the engine, so that pages share its batch; a page is drawn when its turn comes. The
answers come out in page order.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from models.blocks import Block, flaws_of, places_of
from models.layout.task import is_document
from models.model_errors import InvalidInput
from models.pixels import Transparency
from models.settings import InferenceSettings
from models.turned import Orient, back, described_turn, turned_blocks, turned_boxes, turned_size
from runtime.confidence import TokenLogprob
from runtime.documents import (
    DEFAULT_DPI,
    Document,
    Drawn,
    Stop,
    Stopped,
    Workers,
    enough_pixels,
    never,
    open_document,
    parse_pages,
)
from runtime.requests import (
    REASONS,
    FinishDetail,
    Finished,
    Generation,
    Request,
    Stage,
    TextDelta,
    TextModel,
    events_so_far,
)
from runtime.runtime_errors import QueueFull
from runtime.totals import confidence_of, timings_of, usage_of, worst
from server.api_errors import BadRequest, ClientGone, Unavailable
from server.writers.result import describe_block

from .admission import PATIENCE, Admission, Held
from .images import decode_data_url
from .schema import ReadingOptions

log = logging.getLogger(__name__)

PAGE_BREAK = "\n\n"  # between the answers of two pages
RETRY_SECONDS = 0.5  # until a page that found the engine's queue full is tried again
FIRST_TRIES = 8  # pages that are tried before a document counts as one that cannot be read


@dataclass(frozen=True)
class DocumentReader:
    """Opens the document of one request."""

    workers: Workers
    max_bytes: int = 20 << 20
    max_pixels: int = 50_000_000  # of one page
    max_pages: int = 200

    def open(
        self,
        url: str,
        pages: str | None,
        stop: Stop = never,
        transparency: Transparency = "white",
        password: str | None = None,
        orient: Orient = "off",
        seen_pixels: int | None = None,
        dpi: int | None = None,
    ) -> tuple[Document, list[int]]:
        """The document in a data: URL and its chosen pages, counted from 0.

        seen_pixels : of a page, by the model that will read it; pages are drawn with as many as are enough for that.
        dpi : at which they are drawn instead; None: at the usual, and no more than are enough.

        Raises
        ------
        BadRequest, InvalidInput
            for what is no document, is damaged or encrypted, and for pages that it does not have or that are too many.
        TooLarge
            for too many bytes.
        Stopped
            when ``stop`` turned true.
        """
        url = url.strip()
        if url[:5].lower() != "data:":
            raise BadRequest(
                "file_data must be a data: URL (data:application/pdf;base64,...); files and paths of the server are "
                "not read",
                param="file_data",
                code="invalid_file_data",
            )
        content = decode_data_url(url, self.max_bytes, "file", "file_data")
        try:
            document = open_document(
                content, name="the file", max_pixels=self.max_pixels, workers=self.workers, stop=stop,
                transparency=transparency, password=password, orient=orient,
                dpi=dpi or DEFAULT_DPI, shown_pixels=enough_pixels(seen_pixels) if dpi is None else None,
            )  # fmt: skip
        except InvalidInput as error:
            raise BadRequest(str(error), param="file_data", code="invalid_file") from error
        try:
            return document, self._choose(pages, document.page_count)
        except BaseException:
            document.close()
            raise

    def _choose(self, pages: str | None, count: int) -> list[int]:
        try:
            chosen = list(range(count)) if pages is None else parse_pages(pages, count)
        except InvalidInput as error:
            raise BadRequest(str(error), param="ocr.pages", code="invalid_pages") from error
        if len(chosen) > self.max_pages:
            raise BadRequest(
                f"{len(chosen)} pages in one request; the limit is {self.max_pages} (--max-pages); choose some with "
                f'"ocr": {{"pages": "1-{self.max_pages}"}}',
                param="ocr.pages",
                code="too_many_pages",
            )
        return chosen


@dataclass
class DocumentPage:
    """One page of a document, before, while and after it is read."""

    number: int  # from 1
    size: tuple[int, int] = (0, 0)  # width, height in pixels as the model saw it; 0 when it could not be drawn
    generation: Generation | None = None
    pieces: list[str] = field(default_factory=list)
    logprobs: list[tuple[TokenLogprob, ...]] = field(default_factory=list)  # of each piece
    finished: Finished | None = None
    error: str | None = None  # what the client is told
    warnings: tuple[str, ...] = ()  # of its drawing
    truncated: bool = False
    rotated: float = 0  # degrees clockwise by which it was turned
    start: int = 0  # of its text in the whole answer, characters
    end: int = 0
    sent: int = 0  # pieces that have been passed on
    pixels: Held | None = None  # what a page that is read by its parts takes of the house until it is over

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def blocks(self) -> Sequence[Block]:
        return self.finished.blocks if self.finished is not None else ()

    @property
    def done(self) -> bool:
        return self.finished is not None or self.error is not None

    def poll(self, timeout: float) -> None:
        """Take what the page's generation has to say."""
        if self.done or self.generation is None:
            return
        for event in events_so_far(self.generation, timeout):
            if isinstance(event, TextDelta):
                self.pieces.append(event.text)
                self.logprobs.append(event.logprobs)
            else:
                self.finished = event
                self.generation = None
                self.let_go()
                if event.detail == "error":
                    log.error("the engine failed on a page: %s", event.error)
                    self.error = "the model failed on this page"

    def let_go(self) -> None:
        """Of its pixels. Idempotent."""
        if self.pixels is not None:
            self.pixels.release()


class DocumentGeneration:
    """All chosen pages as one ``runtime.requests.Generation``. For one consumer thread; ``cancel`` may be another's.

    admission : where the pixels of a page are taken from, between its drawing and its way into the engine.
    is_gone : whether the client has hung up, which ends the drawing of a page.
    on_page : called with each page when it is over.
    """

    def __init__(
        self, model: TextModel, document: Document, indices: Sequence[int], prompt: str, settings: InferenceSettings,
        reading: ReadingOptions, admission: Admission, is_gone: Stop = never,
        on_page: Callable[[DocumentPage], None] = lambda page: None, client: str = "",
    ) -> None:  # fmt: skip
        """Begin with the first page that can be read.

        Raises
        ------
        InvalidInput
            when there is none among the first few: what is wrong with the first.
        QueueFull, EngineClosed
            see ``TextModel.submit``.
        """
        self._model, self._document = model, document
        self._prompt, self._settings, self._reading, self._on_page = prompt, settings, reading, on_page
        self._admission, self._is_gone, self._client = admission, is_gone, client
        self._started = time.monotonic()
        self._todo = deque(indices)
        self.pages: list[DocumentPage] = []  # begun, in order
        self._current = 0  # the page whose text is passed on
        self._length = 0  # characters passed on
        self._events: deque[TextDelta | Finished] = deque()
        self._over = self._cancelled = self._late = False
        self._not_before = 0.0  # when a full queue is tried again
        self._drawn: Drawn | None = None  # the next page, when the queue was full
        self._pixels: Held | None = None  # what that page takes of the house
        first: InvalidInput | None = None
        for _ in range(min(FIRST_TRIES, len(indices))):
            try:
                self._begin_page()
                return
            except Stopped:
                return  # the time is up, or nobody waits
            except InvalidInput as error:
                first = first or error
        raise first or InvalidInput("no page of the document was chosen")

    def next_event(self, timeout: float | None = None) -> TextDelta | Finished | None:
        """See ``Generation``."""
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while not self._events and not self._over:
            begun = self._fill()
            for page in self.pages[self._current :]:
                page.poll(0.0)
            self._pass_on()
            left = end - time.monotonic()
            if self._events or self._over or left <= 0:
                break
            if not begun:
                self._wait(min(left, 0.1))
        return self._events.popleft() if self._events else None

    @property
    def stage(self) -> Stage:
        """See ``Generation``: of the page whose text is passed on."""
        page = self.pages[self._current] if self._current < len(self.pages) else None
        return "queued" if page is None or page.generation is None else page.generation.stage

    def cancel(self) -> None:
        """See ``Generation``."""
        self._cancelled = True
        for page in list(self.pages):
            if (generation := page.generation) is not None:
                generation.cancel()

    def report(self, boxes: bool) -> dict[str, Any]:
        """What the ``ocr`` field of the answer says about the pages."""
        fields: dict[str, Any] = {"pages": [_describe(page) for page in self.pages]}
        if self._todo:  # the time was up
            fields["pages_not_read"] = [index + 1 for index in self._todo]
        if boxes:
            fields["boxes"] = [
                described
                for page in self.pages
                for described in describe_boxes(
                    self._model, page.text, page.size, page.number, page.blocks, page.rotated
                )
            ]
            if any(page.blocks for page in self.pages):
                fields["blocks"] = [
                    one
                    for page in self.pages
                    for one in describe_blocks(page.blocks, page.number, page.size, page.rotated)
                ]
        if flaws := [flaw for page in self.pages for flaw in describe_flaws(page.blocks, page.number)]:
            fields["blocks_not_whole"] = flaws
        return fields

    def _fill(self) -> bool:
        """Begin one more page when there is a place for it: as many as are decoded together, and one to follow.

        While anybody waits for the engine, the document has one page at work: it takes its turn like a single image.
        """
        self._late = self._late or self._seconds_left() <= 0
        running = sum(not page.done for page in self.pages[self._current :])
        if not self._todo or self._cancelled or self._late or running > self._model.slots:
            return False
        if (running and self._model.queue_depth) or time.monotonic() < self._not_before:
            return False
        try:
            self._begin_page()
        except (QueueFull, Unavailable):
            self._not_before = time.monotonic() + RETRY_SECONDS
            return False
        except Stopped:
            return False
        except InvalidInput:
            pass  # the page says so itself
        return True

    def _begin_page(self) -> None:
        """Draw the next page and hand it to the engine. A page that cannot be read is recorded, and raises."""
        page = DocumentPage(self._todo[0] + 1)
        settings = self._settings
        try:
            self._drawn = self._drawn or self._draw(self._todo[0])
            if settings.deadline_s is not None:
                settings = replace(settings, deadline_s=max(0.0, self._seconds_left()))
            page.size, page.warnings = self._drawn.image.size, self._drawn.warnings
            page.truncated, page.rotated = self._drawn.truncated, self._drawn.rotated
            request = Request(
                self._prompt, [self._drawn.image], settings, self._reading.raw, self._client,
                self._reading.alternatives, self._reading.page, self._reading.schema,
            )  # fmt: skip
            page.generation = self._model.submit(request)
        except InvalidInput as error:
            page.error = str(error)
            self._take(page)
            raise
        self._take(page)
        if self._cancelled:  # meanwhile, by another thread that did not see this page
            page.generation.cancel()

    def _draw(self, index: int) -> Drawn:
        """Draw a page, with the pixels that it takes; they are given back when the page has been taken.

        Raises
        ------
        Unavailable
            when other requests hold the pixels.
        Stopped
            when nobody wants the page any more: ``_late`` or ``_cancelled`` is set.
        """
        try:
            width, height = self._document.size(index, self._is_over)
            patience = 0.0 if self.pages else PATIENCE  # while pages are read, their text is passed on meanwhile
            self._pixels = self._admission.take("pixels", width * height, wait=patience, is_gone=self._is_over)
            return self._document.draw(index, self._is_over)
        except BaseException as error:
            self._let_go()
            if isinstance(error, Stopped | ClientGone):
                self._late = self._seconds_left() <= 0
                self._cancelled = self._cancelled or not self._late
                raise Stopped from None
            raise

    def _is_over(self) -> bool:
        return self._cancelled or self._seconds_left() <= 0 or self._is_gone()

    def _seconds_left(self) -> float:
        """Until the deadline."""
        if self._settings.deadline_s is None:
            return float("inf")
        return self._settings.deadline_s - (time.monotonic() - self._started)

    def _let_go(self) -> None:
        """Of a page that was drawn."""
        self._drawn = None
        if self._pixels is not None:
            self._pixels.release()
            self._pixels = None

    def close(self) -> None:
        """Give back what pages hold that were drawn. Idempotent."""
        self._let_go()
        for page in self.pages:
            page.let_go()

    def _take(self, page: DocumentPage) -> None:
        """The next page has begun, or failed to."""
        if page.generation is not None and is_document(self._prompt):
            page.pixels, self._pixels = self._pixels, None
        self._let_go()
        self._todo.popleft()
        self.pages.append(page)

    def _pass_on(self) -> None:
        """Move the current page's text to the events; go on with the next one when it is over."""
        while self._current < len(self.pages):
            page = self.pages[self._current]
            for piece, logprobs in zip(page.pieces[page.sent :], page.logprobs[page.sent :], strict=True):
                if page.sent == 0:
                    piece = self._begin_text(page, piece)
                page.sent += 1
                self._length += len(piece)
                self._events.append(TextDelta(piece, logprobs=logprobs))
            if not page.done:
                return
            if not page.pieces:
                page.start = self._length
            page.end = self._length
            self._on_page(page)
            self._current += 1
        if not self._todo or self._cancelled or self._late:
            self._over = True
            self._events.append(self._finished())

    def _begin_text(self, page: DocumentPage, piece: str) -> str:
        separator = PAGE_BREAK if self._length else ""
        page.start = self._length + len(separator)
        return separator + piece

    def _wait(self, seconds: float) -> None:
        if self._current < len(self.pages):
            self.pages[self._current].poll(seconds)
        else:  # nothing is running: the queue was full
            time.sleep(seconds)

    def _finished(self) -> Finished:
        ends = [page.finished for page in self.pages if page.finished is not None]
        details: set[FinishDetail] = {page.finished.detail for page in self.pages if page.finished and not page.error}
        if self._todo:
            details.add("cancelled" if self._cancelled else "deadline")
        usage, timings = usage_of(ends), timings_of(ends)
        if not details:
            return Finished("cancelled", "error", usage, timings, "every page failed")
        detail = worst(details)
        return Finished(REASONS[detail], detail, usage, timings, confidence=confidence_of(ends))


def describe_boxes(
    model: TextModel, text: str, size: tuple[int, int], page: int, blocks: Sequence[Block] = (), rotated: float = 0
) -> list[dict[str, Any]]:
    """The places of a page, as the API says them: of its blocks, where they have labels, else those in its text.

    size : of the page as it was read, turned by ``rotated``. What is told is where things are on the page as it came.
    """
    places = turned_boxes(places_of(blocks, model.boxes(text, *size)), size, back(rotated))
    boxes: list[dict[str, Any]] = [{"label": one.label, "text": one.text, "box": list(one.box)} for one in places]
    if len(boxes) == len(blocks) and all(block.label for block in blocks):
        boxes = [
            {**box, **_known(block, order)} for order, (box, block) in enumerate(zip(boxes, blocks, strict=True), 1)
        ]
    return [{**box, "page": page} for box in boxes]


def _known(block: Block, order: int) -> dict[str, Any]:
    """What is told of a block beside its place. order : in its page, from 1."""
    sure = {} if block.confidence is None else {"confidence": block.confidence}
    return {"label": block.label, "kind": block.kind, "order": order, **sure}


def describe_blocks(
    blocks: Sequence[Block], page: int, size: tuple[int, int], rotated: float = 0
) -> list[dict[str, Any]]:
    """The blocks of a page, as results have them. size, rotated : see ``describe_boxes``."""
    return [{**describe_block(block), "page": page} for block in turned_blocks(blocks, size, back(rotated))]


def describe_size(page: int, size: tuple[int, int], rotated: float) -> dict[str, Any]:
    """A page's number, its size as it came, and by how much it was turned, if it was. See ``describe_boxes``."""
    width, height = turned_size(size, rotated)
    return {"page": page, "width": width, "height": height, **described_turn(rotated)}


def describe_flaws(blocks: Sequence[Block], page: int) -> list[dict[str, Any]]:
    """Blocks of a page that are not whole: which, and why."""
    return [
        {"page": page, "block": order, "detail": blocks[order - 1].detail, "warning": warning}
        for order, warning in flaws_of(blocks).items()
    ]


def _describe(page: DocumentPage) -> dict[str, Any]:
    described: dict[str, Any] = {
        **describe_size(page.number, page.size, page.rotated), "start": page.start, "end": page.end,
    }  # fmt: skip
    if page.finished is not None:
        described["finish_detail"] = page.finished.detail
        described["completion_tokens"] = page.finished.usage.completion_tokens
        if page.finished.confidence is not None:
            described["confidence"] = asdict(page.finished.confidence)
    if page.error is not None:
        described["error"] = page.error
    return described | describe_warnings(page.warnings, page.truncated)


def describe_warnings(warnings: Sequence[str], truncated: bool) -> dict[str, Any]:
    """What the API says of a page that was drawn and may not be whole; nothing of one that is."""
    return {**({"warnings": list(warnings)} if warnings else {}), **({"truncated": True} if truncated else {})}
