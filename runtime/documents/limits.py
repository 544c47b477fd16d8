"""What drawing a page may cost, and what is said when a page costs more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from models.model_errors import InvalidInput
from models.pixels import MORE_FORMATS, Transparency
from models.turned import Orient

DEFAULT_DPI = 144
DPI_RANGE = (18, 1200)
SHOWN_PIXELS = 12_000_000  # of a page, unless somebody asks for more: the most that any family's image settings take in
_SHOWN_TIMES = 2  # as many as the model sees are enough of a page, which the model's own resize makes smaller
_LEAST_SHOWN = 2_010_000  # of a page, whatever the model sees: a sheet of A4 at the default dpi stays as it is
DEFAULT_MAX_PIXELS = 50_000_000  # of one page; the server's default limit for an image
# Those that Pillow tells by their first bytes and decodes itself.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "PPM", "PCX", "SGI", "QOI", *MORE_FORMATS)

Stop = Callable[[], bool]  # asked now and then whether the caller wants an end


def enough_pixels(seen: int | None) -> int:
    """Most pixels that a page is given for a model that sees so many of it; None: nobody knows how many."""
    return SHOWN_PIXELS if seen is None else min(SHOWN_PIXELS, max(_SHOWN_TIMES * seen, _LEAST_SHOWN))


def never() -> bool:
    """The ``Stop`` of a caller that waits."""
    return False


@dataclass(frozen=True)
class How:
    """How a document is opened and its pages are drawn; the fields are arguments of ``open_document``."""

    dpi: int = DEFAULT_DPI
    max_pixels: int = DEFAULT_MAX_PIXELS
    shown_pixels: int | None = None  # a page is drawn with at most so many, though it may have ``max_pixels``
    transparency: Transparency = "white"
    password: str | None = field(default=None, repr=False)
    orient: Orient = "off"


@dataclass(frozen=True)
class Limits:
    """Of one step of a worker: opening a document, drawing a page."""

    seconds: float = 20.0  # of processor time
    patience: float = 4.0  # times as much may pass on the clock, on a machine that is busy with other things
    memory: int = 900_000_000  # bytes beyond those of a worker that has nothing to do
    most_killed: int | None = None  # pages of one document that may go beyond these limits; the rest is not tried

    @property
    def too_much_memory(self) -> str:
        """What is said of a page that needed more."""
        return f"it took more than {self.memory >> 20} MiB of memory"


class TooManyPixels(InvalidInput):
    """A picture has more pixels than its reader takes."""


class Stopped(Exception):
    """The caller of a page wanted an end before it was drawn."""
