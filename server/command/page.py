"""One page from its picture to its result, whoever reads it and wherever: here, or in an actor of Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from PIL import Image

from models.errors import InvalidInput
from runtime.documents import Drawn, Stopped

from ..writers import PageResult
from .errors import CommandFailed, Interrupted, PageFailed
from .progress import PageWork
from .readers import Reader

log = logging.getLogger(__name__)


def read_page(
    reader: Reader, draw: Callable[[], Drawn], index: int, document: str, *, min_confidence: float = 0.0,
    work: PageWork | None = None,
) -> tuple[PageResult, Image.Image | None]:  # fmt: skip
    """Draw one page, read it, and say what came of it; the page's picture comes along where it was read.

    index : of the page, from 0. document : its name, for the log. min_confidence : see ``Run``.

    Raises
    ------
    CommandFailed, Interrupted
        when no page can be read any more. All else is this page's failure, and in the result.
    """
    started = time.monotonic()
    try:
        drawn = draw()
        page = drawn.image
        reading = reader.read(page, work)
        sure = reading.confidence
        result = PageResult(
            page=index + 1, state="done", width=page.width, height=page.height, text=reading.text,
            boxes=reading.boxes, finish_detail=reading.finish_detail, prompt_tokens=reading.prompt_tokens,
            completion_tokens=reading.completion_tokens, seconds=time.monotonic() - started,
            timings=reading.timings, confidence=sure,
            doubtful=sure is not None and sure.mean < min_confidence,
            warnings=drawn.warnings, truncated=drawn.truncated,
        )  # fmt: skip
        return result, page
    except (InvalidInput, PageFailed) as error:
        transient = isinstance(error, PageFailed) and error.transient
        return failed(index, str(error), started, transient=transient), None
    except Stopped:
        raise Interrupted from None
    except (CommandFailed, Interrupted):
        raise
    except MemoryError:
        return failed(index, "not enough memory for this page; lower --dpi or --jobs", started), None
    except Exception as error:  # one page must not end the others
        log.exception("unexpected error on page %d of %s", index + 1, document)
        return failed(index, f"internal error: {type(error).__name__}: {error}", started), None


def failed(index: int, error: str, started: float, *, transient: bool = False) -> PageResult:
    """The result of a page that could not be read. ``started``: by the monotonic clock."""
    return PageResult(index + 1, "failed", error, transient, seconds=time.monotonic() - started)
