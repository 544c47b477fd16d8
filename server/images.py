"""Images of a request: from data: URLs and addresses to decoded pictures, within limits that hold before decoding."""

from __future__ import annotations

import base64
import binascii
import io
import logging
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from .errors import ApiError, BadRequest, TooLarge, Unavailable
from .fetch import Fetcher

log = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")

_DATA_URL = re.compile(r"data:(?P<mime>[\w.+-]+/[\w.+-]+)?(?P<params>(?:;[\w.+=-]+)*),", re.IGNORECASE)


class PixelBudget:
    """How many pixels all requests together may hold decoded: a small file can hold very many.

    They are held from decoding until the engine has its own copies, which are no larger than the model's views.
    """

    def __init__(self, pixels: int, patience: float = 10.0) -> None:
        """patience : seconds that a request waits for others to give theirs back."""
        self._free, self._patience = pixels, patience
        self._changed = threading.Condition()

    def take(self, pixels: int) -> None:
        """Hold so many pixels.

        Raises
        ------
        Unavailable
            when the others have not given enough back in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: pixels <= self._free, self._patience):
                raise Unavailable("the images of other requests fill the memory; try again later", code="queue_full")
            self._free -= pixels

    def give_back(self, pixels: int) -> None:
        """Let others have them."""
        with self._changed:
            self._free += pixels
            self._changed.notify_all()


class Pictures:
    """The decoded images of one request, and what they take of the budget."""

    def __init__(self, budget: PixelBudget) -> None:
        self.images: list[Image.Image] = []
        self._budget, self._held = budget, 0

    def take(self, pixels: int) -> None:
        """See ``PixelBudget.take``."""
        self._budget.take(pixels)
        self._held += pixels

    def release(self) -> None:
        """Let go of the images. Idempotent."""
        self.images = []
        held, self._held = self._held, 0
        self._budget.give_back(held)


@dataclass(frozen=True)
class ImageReader:
    """Reads the images of requests."""

    fetcher: Fetcher
    max_images: int = 10
    max_bytes: int = 20 << 20  # of one encoded image
    max_pixels: int = 50_000_000  # of one image; of all images of a request twice that
    budget: PixelBudget = field(default_factory=lambda: PixelBudget(400_000_000))

    def read(self, urls: Sequence[str]) -> Pictures:
        """Fetch and decode all images, in order. They are loaded, as stored: not rotated, not converted.

        Raises
        ------
        BadRequest
            for an address, an encoding or a format that cannot be read.
        TooLarge
            for too many images, bytes or pixels.
        Unavailable
            when other requests hold too many pixels.
        """
        if len(urls) > self.max_images:
            raise TooLarge(f"{len(urls)} images in one request; the limit is {self.max_images}", code="too_many_images")
        deadline = time.monotonic() + self.fetcher.timeout
        pictures = Pictures(self.budget)
        try:
            for number, url in enumerate(urls, 1):
                pictures.images.append(self._decode(self._bytes(url, deadline), number, pictures))
        except BaseException:
            pictures.release()
            raise
        return pictures

    def _bytes(self, url: str, deadline: float) -> bytes:
        url = url.strip()
        if url[:5].lower() == "data:":
            return decode_data_url(url, self.max_bytes)
        if "://" in url[:32] and url[:7].lower() != "file://":
            return self.fetcher.fetch(url, deadline)
        raise BadRequest(
            "an image must be a data: URL (data:image/png;base64,...) or an http(s) address; files and paths of the "
            "server are not read",
            param="image_url",
            code="invalid_image_url",
        )

    def _decode(self, data: bytes, number: int, pictures: Pictures) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header only
            width, height = image.size
            if width * height > self.max_pixels:
                raise _too_many_pixels(number, f"{width} x {height}", self.max_pixels)
            if width * height + sum(one.width * one.height for one in pictures.images) > 2 * self.max_pixels:
                raise TooLarge(
                    f"the images of one request have more than {2 * self.max_pixels / 1e6:.0f} million pixels in all; "
                    "send fewer at a time, or scale them down", param="image_url", code="images_too_large",
                )  # fmt: skip
            pictures.take(width * height)
            image.seek(0)
            image.load()
            if image.width * image.height > self.max_pixels:  # a frame larger than its header said
                raise _too_many_pixels(number, f"{image.width} x {image.height}", self.max_pixels)
        except ApiError:
            raise
        except (Image.DecompressionBombError, MemoryError):
            raise _too_many_pixels(number, "its size", self.max_pixels) from None
        except Exception as error:
            # Decoders of damaged files raise whatever they run into: SyntaxError, struct.error, IndexError ...
            raise BadRequest(
                f"image {number} cannot be read ({_reason(error)}); formats are {', '.join(FORMATS)}",
                param="image_url",
                code="invalid_image",
            ) from error
        return image


def decode_data_url(url: str, max_bytes: int, what: str = "image", param: str = "image_url") -> bytes:
    """The content of a data: URL with base64.

    Raises
    ------
    BadRequest
        when it is none.
    TooLarge
        when the content has more than ``max_bytes``.
    """
    head = _DATA_URL.match(url[:256])
    if head is None or ";base64" not in head["params"].lower():
        example = "image/png" if what == "image" else "application/pdf"
        raise BadRequest(
            f"the {what}'s data: URL must look like data:{example};base64,...", param=param, code=f"invalid_{param}"
        )
    if (len(url) - head.end()) * 3 // 4 > max_bytes + 3:
        article = "an" if what == "image" else "a"
        raise TooLarge(f"{article} {what} is larger than {max_bytes >> 20} MiB", param=param, code=f"{what}_too_large")
    # Some clients break lines, leave the padding out or use the URL alphabet.
    text = re.sub(r"\s+", "", url[head.end() :]).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"the {what}'s data: URL holds no valid base64", param=param, code="invalid_base64") from None


def _reason(error: Exception) -> str:
    text = str(error)
    if "cannot identify" in text:  # the message holds an object's address, which helps nobody
        return "not a known image format, or damaged"
    return text[:100] or type(error).__name__


def _too_many_pixels(number: int, size: str, limit: int) -> TooLarge:
    return TooLarge(
        f"image {number}: {size} is more than {limit / 1e6:.0f} million pixels; scale it down",
        param="image_url",
        code="image_too_large",
    )
