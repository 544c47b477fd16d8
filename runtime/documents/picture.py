"""Pages of a picture: one for each frame of a TIFF; of other formats the first frame (an animation is no document).

Only a worker process calls this: decoders of damaged and of hostile files may take all time and memory there is.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from models.errors import InvalidInput
from models.pixels import Transparency, upright_rgb, upright_size

from .limits import IMAGE_FORMATS, TooManyPixels

_MOST_FRAMES = 2_000  # of a picture; a file of a few MB can claim a million, each of which costs time


class PicturePages:
    """The frames of an opened picture. It stays open: Pillow knows the places of the frames that it has seen."""

    def __init__(
        self, source: Path | bytes, name: str, max_pixels: int, *, first_only: bool, transparency: Transparency
    ) -> None:
        self._name, self._max_pixels, self._transparency = name, max_pixels, transparency
        self._taken = ("formats are " if first_only else "documents are PDF, ") + ", ".join(IMAGE_FORMATS)
        Image.MAX_IMAGE_PIXELS = None  # every frame is checked here, before anything is decoded
        with self._understood():
            self._image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=IMAGE_FORMATS)
            self.count = 1 if first_only or self._image.format != "TIFF" else _count_frames(self._image, name)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels of the frame as ``page`` gives it, as far as its header says."""
        with self._understood():
            self._image.seek(index)
            self._check()
            return upright_size(self._image)

    def page(self, index: int) -> Image.Image:
        """One frame: upright, in RGB."""
        with self._understood():
            self._image.seek(index)
            self._check()
            self._image.load()
            self._check()  # some frames are larger than their header says
            return upright_rgb(self._image, self._transparency)

    def _check(self) -> None:
        width, height = self._image.size
        if width * height > self._max_pixels:
            raise TooManyPixels(
                f"{self._name} has {width} x {height} pixels; the limit is {self._max_pixels / 1e6:g} million: "
                "scale it down"
            )

    def close(self) -> None:
        """Let go of the file."""
        self._image.close()

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """Every failure inside the block is the file's fault."""
        try:
            yield
        except (InvalidInput, MemoryError):
            raise
        except Exception as error:  # decoders of damaged files raise whatever they run into
            raise InvalidInput(f"{self._name} cannot be read ({_reason(error)}); {self._taken}") from error


def _count_frames(image: Image.Image, name: str) -> int:
    """As Pillow's ``n_frames``, which goes through all that a file claims to have, however many those are."""
    for count in range(1, _MOST_FRAMES + 1):
        try:
            image.seek(count)
        except EOFError:
            return count
    raise InvalidInput(f"{name} has more than {_MOST_FRAMES:,} frames, the most that are read; split it")


def _reason(error: Exception) -> str:
    text = str(error)
    if "cannot identify" in text:  # the message holds an object's address, which helps nobody
        return "not a known format, or damaged"
    return text[:100] or type(error).__name__
