"""The document of a request, read page by page as one generation.

Each page is a request of its own to the engine, so that pages share the batch; a page is drawn when its turn comes. The
answers come out in page order.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from models.blocks import Block
from models.layout.task import is_document
from models.model_errors import InvalidInput
from models.settings import InferenceSettings
from runtime.confidence import TokenLogprob
from runtime.documents import Document, Drawn, Stop, Stopped, never
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
from server.api_errors import ClientGone, Unavailable

from .admission import PATIENCE, Admission, Held
from .page_fields import describe_blocks, describe_boxes, describe_flaws, describe_size, describe_warnings
from .schema import ReadingOptions

log = logging.getLogger(__name__)

PAGE_BREAK = "\n\n"  # between the answers of two pages
RETRY_SECONDS = 0.5  # seconds until a page that the engine's full queue refused is submitted again
FIRST_TRIES = 8  # pages to try before the document counts as unreadable


@dataclass
class DocumentPage:
    """One page of a document, from its drawing to its end."""

    number: int  # from 1
    size: tuple[int, int] = (0, 0)  # width, height in pixels as read; 0 when the page could not be drawn
    generation: Generation | None = None
    pieces: list[str] = field(default_factory=list)
    logprobs: list[tuple[TokenLogprob, ...]] = field(default_factory=list)  # of each piece
    finished: Finished | None = None
    error: str | None = None  # error message for the client
    warnings: tuple[str, ...] = ()  # from drawing the page
    truncated: bool = False
    dpi: float | None = None  # dots per inch of the drawn page, where they are known
    rotated: float = 0  # degrees clockwise by which the page was turned
    start: int = 0  # begin of the page's text in the whole answer, characters
    end: int = 0
    sent: int = 0  # number of pieces passed on
    pixels: Held | None = None  # pixels of a page that is read by its parts, held until its end

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
        """Take the new events of the page's generation."""
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
        """Give the page's pixels back. Idempotent."""
        if self.pixels is not None:
            self.pixels.release()


class DocumentGeneration:
    """All chosen pages as one ``runtime.requests.Generation``. For one consumer thread; any may ``cancel``.

    admission : gives the pixels of a page, from its drawing until the engine has the request.
    is_gone : whether the client has hung up, which ends the drawing of a page.
    on_page : called with each page when the page has ended.
    """

    def __init__(
        self, model: TextModel, document: Document, indices: Sequence[int], prompt: str, settings: InferenceSettings,
        reading: ReadingOptions, admission: Admission, is_gone: Stop = never,
        on_page: Callable[[DocumentPage], None] = lambda page: None, client: str = "",
    ) -> None:  # fmt: skip
        """Begin to read the first page that can be read.

        Raises
        ------
        InvalidInput
            when none of the first few can be read: the first one's error.
        QueueFull, EngineClosed
            see ``TextModel.submit``.
        """
        self._model, self._document = model, document
        self._prompt, self._settings, self._reading, self._on_page = prompt, settings, reading, on_page
        self._admission, self._is_gone, self._client = admission, is_gone, client
        self._started = time.monotonic()
        self._todo = deque(indices)
        self.pages: list[DocumentPage] = []  # pages that have begun, in order
        self._current = 0  # index of the page whose text is passed on
        self._length = 0  # number of characters passed on
        self._events: deque[TextDelta | Finished] = deque()
        self._over = self._cancelled = self._late = False
        self._not_before = 0.0  # when to try the full queue again
        self._drawn: Drawn | None = None  # the next page, when the queue was full
        self._pixels: Held | None = None  # pixels held by that page
        first: InvalidInput | None = None
        for _ in range(min(FIRST_TRIES, len(indices))):
            try:
                self._begin_page()
                return
            except Stopped:
                return  # the time is up, or the client is gone
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
        """Fields of the answer's ``ocr`` field about the pages."""
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
        """Begin the next page, unless more pages are in flight than the engine decodes together.

        While other requests wait for the engine, the document has one page in flight, and takes its turn like a single
        image.
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
            pass  # the page has the error
        return True

    def _begin_page(self) -> None:
        """Draw the next page and submit it to the engine. A page that cannot be read is recorded, and raises."""
        page = DocumentPage(self._todo[0] + 1)
        settings = self._settings
        try:
            self._drawn = self._drawn or self._draw(self._todo[0])
            if settings.deadline_s is not None:
                settings = replace(settings, deadline_s=max(0.0, self._seconds_left()))
            page.size, page.warnings = self._drawn.image.size, self._drawn.warnings
            page.truncated, page.rotated = self._drawn.truncated, self._drawn.rotated
            page.dpi = self._drawn.dpi
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
        if self._cancelled:  # cancelled meanwhile, by a thread that did not see this page
            page.generation.cancel()

    def _draw(self, index: int) -> Drawn:
        """Draw a page, and hold its pixels until ``_take``.

        Raises
        ------
        Unavailable
            when other requests hold the pixels.
        Stopped
            when the page is not wanted any more: ``_late`` or ``_cancelled`` is set.
        """
        try:
            width, height = self._document.size(index, self._is_over)
            patience = 0.0 if self.pages else PATIENCE  # without waiting while pages in flight have text to pass on
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
        """Seconds until the deadline."""
        if self._settings.deadline_s is None:
            return float("inf")
        return self._settings.deadline_s - (time.monotonic() - self._started)

    def _let_go(self) -> None:
        """Drop the drawn page, and give its pixels back."""
        self._drawn = None
        if self._pixels is not None:
            self._pixels.release()
            self._pixels = None

    def close(self) -> None:
        """Give back the pixels of drawn pages. Idempotent."""
        self._let_go()
        for page in self.pages:
            page.let_go()

    def _take(self, page: DocumentPage) -> None:
        """Note that the next page has begun or failed."""
        if page.generation is not None and is_document(self._prompt):
            page.pixels, self._pixels = self._pixels, None
        self._let_go()
        self._todo.popleft()
        self.pages.append(page)

    def _pass_on(self) -> None:
        """Move the current page's text to the events; when the page has ended, go on with the next."""
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
        else:  # nothing is in flight: the queue was full
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


def _describe(page: DocumentPage) -> dict[str, Any]:
    described: dict[str, Any] = {
        **describe_size(page.number, page.size, page.rotated), "start": page.start, "end": page.end,
    }  # fmt: skip
    if page.dpi is not None:
        described["dpi"] = round(page.dpi, 2)
    if page.finished is not None:
        described["finish_detail"] = page.finished.detail
        described["completion_tokens"] = page.finished.usage.completion_tokens
        if page.finished.confidence is not None:
            described["confidence"] = asdict(page.finished.confidence)
    if page.error is not None:
        described["error"] = page.error
    return described | describe_warnings(page.warnings, page.truncated)
