"""One page from its picture to its result, with any reader: in this process, or in an actor of Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from models.blocks import flaws_of
from models.model_errors import InvalidInput
from runtime.documents import Document, Drawn, DrawnPages, Stop, Stopped

from ..writers import PageResult, page_blocks
from ..writers.figures import Pictures
from .command_errors import CommandFailed, Interrupted, PageFailed
from .progress import PageWork
from .readers import Reader, Reading

log = logging.getLogger(__name__)


def read_page(
    reader: Reader, draw: Callable[[], Drawn], index: int, document: str, *, min_confidence: float = 0.0,
    work: PageWork | None = None,
) -> tuple[PageResult, Image.Image | None]:  # fmt: skip
    """Draw and read one page. Returns the result and, where the page was read, its pictures.

    index : of the page, from 0. document : the document's name, for the log. min_confidence : see ``Run``.

    Raises
    ------
    CommandFailed, Interrupted
        when no page can be read any more. All other errors are this page's failure, told in the result.
    """
    started = time.monotonic()
    try:
        drawn = draw()
        page = drawn.image
        reading = reader.read(page, work)
        return _read(index, drawn, reading, time.monotonic() - started, min_confidence), page
    except Exception as error:  # one page must not end the run
        return _failed(error, index, document, started), None


def read_together(
    reader: Reader, document: Document, indices: Sequence[int], stop: Stop, *, min_confidence: float = 0.0,
    work: PageWork | None = None,
) -> Iterator[tuple[PageResult, Image.Image | None]]:  # fmt: skip
    """Read pages of a document in one answer, whose seconds are shared out; other arguments as in ``read_page``.

    Each page is drawn again for its figures, so that only one page is in memory.
    """
    started = time.monotonic()
    pages = DrawnPages(document, indices, stop)
    try:
        readings = _read_drawn(reader, pages, work)
    except Exception as error:  # one document must not end the run
        for index in indices:
            yield _failed(error, index, document.name, started), None
        return
    seconds = (time.monotonic() - started) / sum(isinstance(one, Reading) for one in readings)
    for index, reason in pages.lost.items():
        yield failed(index, reason, started), None
    for index, reading in zip(pages.indices, readings, strict=True):
        try:
            if isinstance(reading, PageFailed):
                raise reading
            drawn = document.draw(index, stop)
        except Exception as error:
            yield _failed(error, index, document.name, started), None
            continue
        yield _read(index, drawn, reading, seconds, min_confidence), drawn.image


def _read_drawn(reader: Reader, pages: DrawnPages, work: PageWork | None) -> list[Reading | PageFailed]:
    """Read the pages that can be drawn."""
    while True:
        try:
            return reader.read_together(pages, work)
        except InvalidInput as error:
            if not pages.leave_out(error):
                raise


def _read(index: int, drawn: Drawn, reading: Reading, seconds: float, min_confidence: float) -> PageResult:
    sure, (width, height) = reading.confidence, drawn.image.size
    flaws = flaws_of(reading.blocks)
    return PageResult(
        page=index + 1, state="done", width=width, height=height, text=reading.text,
        boxes=reading.boxes, blocks=page_blocks(reading.text, reading.boxes, reading.blocks),
        finish_detail=reading.finish_detail, prompt_tokens=reading.prompt_tokens,
        completion_tokens=reading.completion_tokens, seconds=seconds, timings=reading.timings, confidence=sure,
        warnings=(*drawn.warnings, *flaws.values()), doubtful=sure is not None and sure.mean < min_confidence,
        truncated=drawn.truncated, rotated=drawn.rotated,
    )  # fmt: skip


def _failed(error: Exception, index: int, document: str, started: float) -> PageResult:
    """The result of a page after an error. Raises errors after which no page can be read any more."""
    match error:
        case Stopped():
            raise Interrupted from None
        case CommandFailed() | Interrupted():
            raise error
        case InvalidInput() | PageFailed():
            return failed(index, str(error), started, transient=isinstance(error, PageFailed) and error.transient)
        case MemoryError():
            return failed(index, "not enough memory for this page; lower --dpi or --jobs", started)
    log.error("unexpected error on page %d of %s", index + 1, document, exc_info=error)
    return failed(index, f"internal error: {type(error).__name__}: {error}", started)


def with_pictures(
    pictures: Pictures, result: PageResult, page: Image.Image | None, document: str
) -> tuple[PageResult, dict[str, bytes]]:
    """The result with the wanted pictures; a failed one if they cannot be made. page : None for a failed page."""
    if page is None:
        return result, {}
    started = time.monotonic()
    try:
        return pictures.make(result, page)
    except Exception as error:
        log.exception("unexpected error while making the pictures of page %d of %s", result.page, document)
        return failed(result.page - 1, f"internal error: {type(error).__name__}: {error}", started), {}


def failed(index: int, error: str, started: float, *, transient: bool = False) -> PageResult:
    """The result of a page that could not be read. ``started``: seconds of ``time.monotonic``."""
    return PageResult(index + 1, "failed", error, transient, seconds=time.monotonic() - started)
