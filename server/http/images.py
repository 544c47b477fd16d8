"""Images of a request: from data: URLs and addresses to decoded pictures, within limits that hold before decoding.

Worker processes read and decode the files, as with documents.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image

from models.model_errors import InvalidInput
from models.pixels import Transparency
from models.turned import Orient
from runtime.documents import Document, Stop, TooManyPixels, Workers, never, open_picture
from server.api_errors import BadRequest, TooLarge
from server.fetch import Fetcher

from .admission import PATIENCE, Admission

log = logging.getLogger(__name__)


_DATA_URL = re.compile(r"data:(?P<mime>[\w.+-]+/[\w.+*-]+)?(?P<params>(?:;[\w.+=-]+)*),", re.IGNORECASE)


class RequestPictures:
    """The images of one request: files and sizes. Pixels are in memory inside ``decoded`` only."""

    def __init__(self, admission: Admission) -> None:
        self.files: list[Document] = []
        self.sizes: list[tuple[int, int]] = []  # width, height in pixels of the unturned images
        self.rotated: list[float] = []  # degrees clockwise by which decoded images were turned
        self.warnings: list[str] = []  # warnings about decoded images
        self.truncated = False  # a decoded image's file was cut off
        self._admission = admission

    @property
    def pixels(self) -> int:
        """Pixels of all images together."""
        return sum(width * height for width, height in self.sizes)

    @contextlib.contextmanager
    def decoded(self, stop: Stop) -> Iterator[list[Image.Image]]:
        """The images in order, upright and in RGB. Waits for other requests' pixels where there is no room.

        Raises
        ------
        BadRequest, TooLarge
            for a file that is damaged, or holds more than its header says.
        Unavailable
            when other requests hold too many pixels.
        ClientGone, Stopped
            when ``stop`` turned true.
        """
        with self._admission.take("pixels", self.pixels, wait=PATIENCE, is_gone=stop):
            images: list[Image.Image] = []
            for file in self.files:
                with _explained():
                    drawn = file.draw(0, stop)
                images.append(drawn.image)
                self.rotated.append(drawn.rotated)
                self.warnings += [f"{file.name}: {warning}" for warning in drawn.warnings]
                self.truncated = self.truncated or drawn.truncated
            self.close()
            yield images

    def close(self) -> None:
        """Close the files. Idempotent."""
        for file in self.files:
            file.close()
        self.files = []


@dataclass(frozen=True)
class ImageReader:
    """Reads the images of requests."""

    fetcher: Fetcher
    workers: Workers
    max_images: int = 10
    max_bytes: int = 20 << 20  # bytes of one encoded image
    max_pixels: int = 50_000_000  # pixels of one image; all images of a request may have twice as many
    admission: Admission = field(default_factory=Admission)

    def open(
        self, urls: Sequence[str], stop: Stop = never, transparency: Transparency = "white", orient: Orient = "off"
    ) -> RequestPictures:
        """Fetch all images, in order, and read their headers.

        Raises
        ------
        BadRequest
            for too many images, and for an address, an encoding or a format that cannot be read.
        TooLarge
            for too many bytes or pixels.
        Stopped
            when ``stop`` turned true.
        """
        if len(urls) > self.max_images:
            raise BadRequest(
                f"{len(urls)} images in one request; the limit is {self.max_images} (--max-images)",
                param="image_url", code="too_many_images",
            )  # fmt: skip
        deadline = time.monotonic() + self.fetcher.timeout
        pictures = RequestPictures(self.admission)
        try:
            for number, url in enumerate(urls, 1):
                self._add(pictures, self._bytes(url, deadline), number, stop, transparency, orient)
        except BaseException:
            pictures.close()
            raise
        return pictures

    def _add(
        self,
        pictures: RequestPictures,
        data: bytes,
        number: int,
        stop: Stop,
        transparency: Transparency,
        orient: Orient,
    ) -> None:
        with _explained():
            file = open_picture(
                data, name=f"image {number}", max_pixels=self.max_pixels, workers=self.workers, stop=stop,
                transparency=transparency, orient=orient,
            )  # fmt: skip
            pictures.files.append(file)
            pictures.sizes.append(file.size(0, stop))
        if pictures.pixels > 2 * self.max_pixels:
            raise TooLarge(
                f"the images of one request have more than {2 * self.max_pixels / 1e6:.0f} million pixels in all; "
                "send fewer at a time, or scale them down", param="image_url", code="images_too_large",
            )  # fmt: skip

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


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """A worker's error about an image, as an error of the API."""
    try:
        yield
    except TooManyPixels as error:
        raise TooLarge(str(error), param="image_url", code="image_too_large") from error
    except InvalidInput as error:
        raise BadRequest(str(error), param="image_url", code="invalid_image") from error


def decode_data_url(url: str, max_bytes: int, what: str = "image", param: str = "image_url") -> bytes:
    """The content of a data: URL with base64.

    Raises
    ------
    BadRequest
        when the text is no such URL.
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
    # Some clients break lines, omit the padding or use the URL-safe alphabet.
    text = re.sub(r"\s+", "", url[head.end() :]).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"the {what}'s data: URL holds no valid base64", param=param, code="invalid_base64") from None
