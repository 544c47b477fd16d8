"""Limits of what drawing a page may cost, and the messages beyond them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from models.model_errors import InvalidInput
from models.pixels import MORE_FORMATS, Transparency
from models.turned import Orient

DEFAULT_DPI = 144
DPI_RANGE = (18, 1200)
SHOWN_PIXELS = 12_000_000  # pixels of a page by default: the most that any family's image settings take in
_SHOWN_TIMES = 2  # pixels drawn for each pixel that the model sees, for the model's own resize to reduce
_LEAST_SHOWN = 2_010_000  # least limit of a page, whatever the model sees: A4 at the default dpi is not scaled down
DEFAULT_MAX_PIXELS = 50_000_000  # pixels of one page; the server's default limit for an image
# Formats that Pillow recognises by their first bytes and decodes itself.
IMAGE_FORMATS = (
    "PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "PPM", "PCX", "SGI", "QOI", *MORE_FORMATS, "ICO", "ICNS",
    "DIB", "PSD", "DDS", "SUN", "XBM", "MSP",
)  # fmt: skip

Stop = Callable[[], bool]  # polled: true once the caller wants an end


def enough_pixels(seen: int | None) -> int:
    """Most pixels worth drawing for a model that sees ``seen`` pixels of a page; None: unknown."""
    return SHOWN_PIXELS if seen is None else min(SHOWN_PIXELS, max(_SHOWN_TIMES * seen, _LEAST_SHOWN))


def never() -> bool:
    """The ``Stop`` of a caller that waits for the end."""
    return False


@dataclass(frozen=True)
class How:
    """Options of opening and drawing; the fields are arguments of ``open_document``."""

    dpi: int = DEFAULT_DPI
    max_pixels: int = DEFAULT_MAX_PIXELS
    shown_pixels: int | None = None  # pixels worth drawing, where fewer than ``max_pixels`` are
    transparency: Transparency = "white"
    password: str | None = field(default=None, repr=False)
    orient: Orient = "off"


@dataclass(frozen=True)
class Limits:
    """Limits of one step of a worker: opening a document, or drawing a page."""

    seconds: float = 20.0  # of processor time
    patience: float = 4.0  # factor from processor time to time on the clock, for busy machines
    memory: int = 900_000_000  # bytes beyond an idle worker's
    most_killed: int | None = None  # pages of one document that may exceed the limits; further pages are not tried

    @property
    def too_much_memory(self) -> str:
        """The message for a page that needs more memory."""
        return f"it took more than {self.memory >> 20} MiB of memory"


class TooManyPixels(InvalidInput):
    """A picture has more pixels than allowed."""


class Stopped(Exception):
    """The caller's ``Stop`` turned true before the page was drawn."""
