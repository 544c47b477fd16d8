"""Pages of a picture: one for each frame of a TIFF; of other formats the first frame (an animation is no document).

A picture with more pixels than a page may have is scaled down; a truncated file gives the rows that are there. Called
by worker processes only: decoders of damaged and hostile files may take unbounded time and memory.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, Jpeg2KImagePlugin

from models.model_errors import InvalidInput
from models.pixels import Transparency, to_rgb, turned_upright, upright_size

from .drawn import Drawn
from .kinds import named
from .limits import IMAGE_FORMATS, TooManyPixels
from .scaling import fitting, scaled_rgb

_MOST_FRAMES = 2_000  # frames of a picture; a file of a few MB can claim a million, each of which costs time
_MOST_TIMES = 12  # times a page's limit of pixels is decoded and scaled down: A0 at 600 dpi by default
_MOST_BYTES = 560_000_000  # bytes of decoded pixels: one bit at A0 and 600 dpi; a worker's memory also holds the result
_BYTES_IN_FLIGHT = 16  # bytes that each pixel of a page takes while the page is read, here and elsewhere
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # bytes a pixel; other modes: 4
_SMALLER = ("JPEG", "JPEG2000", "MPO")  # formats that are decoded smaller than they are
_TIMES_DECODED = 4  # pixels of such a picture, decoded, for each pixel of its page
_BYTES_PROGRESSIVE = 3  # bytes a pixel of a progressive JPEG, all of whose coefficients are kept, in most files
_EDGE_OF_JPEG_2000 = 1 << 16  # bytes of a JPEG 2000 that hold its main header
_START = 1024  # bytes by which the kind of a file is told
_PLAUSIBLE_DPI = (30, 4_800)  # dots per inch that scanners write; files with others tell nothing
_CUT_OFF = "the file is cut off or damaged; what could be decoded of the page was read"
_LOST_PAGES = "the file is cut off or damaged: what may come after page {} is lost"
_DAMAGED = "it is damaged, or of a kind that cannot be decoded here: get it again, or save it as PNG"
_LEAST_ROWS = 17  # rows of a truncated frame; decoders invent up to 16
_NOT_DECODED = (0, 128)  # values that decoders leave behind a file's end: black, and grey in a JPEG


class PicturePages:
    """The frames of an opened picture, which stays open as Pillow remembers the offsets of frames."""

    def __init__(
        self, source: Path | bytes, name: str, max_pixels: int, *, first_only: bool, transparency: Transparency,
        shown: int | None = None,
    ) -> None:  # fmt: skip
        """shown : pixels worth decoding to, where fewer than ``max_pixels`` are."""
        self._shown = shown or max_pixels
        self.warnings: tuple[str, ...] = ()  # about the document; a frame's warnings come with the frame
        self._source, self._name, self._max_pixels, self._transparency = source, name, max_pixels, transparency
        self._taken = ("formats are " if first_only else "documents are PDF, ") + ", ".join(IMAGE_FORMATS)
        Image.MAX_IMAGE_PIXELS = None  # every frame is checked here, before anything is decoded
        with self._understood():
            self._image = self._opened()
            self.count = 1
            if not first_only and self._image.format == "TIFF":
                self.count, broken = _count_frames(self._image, name)
                self.warnings = (_LOST_PAGES.format(self.count),) if broken else ()

    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels of the frame as ``page`` gives it, by the frame's header."""
        with self._understood():
            self._image.seek(index)
            self._check(self._image)
            return fitting(*upright_size(self._image), self._shown)

    def weight(self, index: int) -> int:
        """Pixels of a page that takes as much memory as decoding this frame."""
        with self._understood():
            self._image.seek(index)
            return self._decoded_bytes(self._image) // _BYTES_IN_FLIGHT

    def _decoded_bytes(self, image: Image.Image) -> int:
        """Bytes of a frame's decoded pixels, by its header."""
        width, height = image.size
        if image.format in _SMALLER:
            if image.info.get("progressive"):
                return width * height * _BYTES_PROGRESSIVE
            width, height = fitting(width, height, _TIMES_DECODED * self._shown)
        return width * height * _BYTES.get(image.mode, 4)

    def page(self, index: int) -> Drawn:
        """One frame: upright, in RGB, scaled down where it has too many pixels."""
        with self._understood(_DAMAGED):
            self._image.seek(index)
            self._check(self._image)
            width, height = self._image.size
            size = fitting(width, height, self._shown)
            _decode_smaller(self._image, size)
            try:
                self._image.load()
            except MemoryError:
                raise
            except Exception as error:  # of a damaged file: anything
                return self._what_is_there(index, size, error)
            self._check(self._image)  # some frames are larger than their header says
            upright = self._upright(self._image, self._image)
            return Drawn(upright, dpi=_dpi(self._image, *upright.size, width * height))

    def _upright(self, pixels: Image.Image, frame: Image.Image) -> Image.Image:
        """``pixels`` of a frame in RGB, scaled down to ``size`` and turned as the frame's orientation says."""
        size = fitting(*pixels.size, self._shown)
        if size == pixels.size:
            return turned_upright(to_rgb(pixels, self._transparency), frame)
        return turned_upright(scaled_rgb(pixels, size, self._transparency), frame)

    def _opened(self) -> ImageFile.ImageFile:
        source = io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source
        return Image.open(source, formats=IMAGE_FORMATS)

    def _what_is_there(self, index: int, size: tuple[int, int], error: Exception) -> Drawn:
        """The frame of a truncated file, white where rows are missing. Raises ``error`` when all are missing.

        size : (width, height) to scale the frame down to.
        """
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        with contextlib.ExitStack() as stack:
            try:
                frame = stack.enter_context(self._opened())
                frame.seek(index)
                _decode_smaller(frame, size)
                _load_what_is_there(frame)
            except MemoryError:
                raise
            except Exception:
                raise error from None
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            self._check(frame)
            first, last = _decoded_rows(frame)
            if last - first < min(_LEAST_ROWS, frame.height):
                raise error
            pixels: Image.Image = frame
            if last - first < frame.height:
                pixels = to_rgb(frame, self._transparency)
                pixels.paste("white", (0, 0, frame.width, first))
                pixels.paste("white", (0, last, *frame.size))
            return Drawn(self._upright(pixels, frame), (_CUT_OFF,), truncated=True)

    def _check(self, image: Image.Image) -> None:
        width, height = image.size
        most = _MOST_TIMES * self._max_pixels
        if width * height > most or self._decoded_bytes(image) > _MOST_BYTES:
            raise TooManyPixels(
                f"{self._name} has {width} x {height} pixels; the limit is {most / 1e6:g} million, and "
                f"{_MOST_BYTES / 1e6:g} MB of memory: scale it down"
            )

    def close(self) -> None:
        """Let go of the file."""
        self._image.close()

    @contextlib.contextmanager
    def _understood(self, remedy: str = "") -> Iterator[None]:
        """Turn every error inside the block into InvalidInput. remedy : by default the list of formats."""
        try:
            yield
        except (InvalidInput, MemoryError):
            raise
        except Exception as error:  # decoders of damaged files raise all kinds of errors
            kind = None if remedy else named(self._start(), decoded="HEIF" in IMAGE_FORMATS)
            if kind is not None:
                raise InvalidInput(f"{self._name} cannot be read: {kind}") from error
            raise InvalidInput(f"{self._name} cannot be read ({_reason(error)}); {remedy or self._taken}") from error

    def _start(self) -> bytes:
        if isinstance(self._source, bytes):
            return self._source[:_START]
        try:
            with self._source.open("rb") as file:
                return file.read(_START)
        except OSError:
            return b""


def _dpi(image: Image.Image, width: int, height: int, pixels: int) -> float | None:
    """Dots per inch of a page of ``width`` x ``height`` pixels, by the file, which tells them for ``pixels`` pixels."""
    told = image.info.get("dpi")
    across = told[0] if isinstance(told, tuple) and told else None
    if not isinstance(across, int | float) or not _PLAUSIBLE_DPI[0] <= across <= _PLAUSIBLE_DPI[1]:
        return None
    return float(across) * math.sqrt(width * height / pixels)


def _decode_smaller(image: ImageFile.ImageFile, size: tuple[int, int]) -> None:
    """Have a JPEG or JPEG 2000 decoded at a half, a quarter ... of its size, but no smaller than ``size``."""
    if image.size == size:
        return
    if isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile):
        levels = math.floor(math.log2(max(1.0, min(image.width / size[0], image.height / size[1]))))
        image.reduce = min(levels, _levels(image))
    else:
        image.draft(None, size)


def _levels(image: Jpeg2KImagePlugin.Jpeg2KImageFile) -> int:
    """How often a JPEG 2000 can be halved: the levels of its wavelets."""
    assert image.fp is not None
    place = image.fp.tell()
    image.fp.seek(0)
    start = image.fp.read(_EDGE_OF_JPEG_2000)
    image.fp.seek(place)
    # The marker COD: its length, Scod, order, layers, kind of colours, and then the levels.
    marker = start.find(b"\xff\x52\x00")
    return start[marker + 9] if 0 <= marker < len(start) - 9 and start[marker + 9] <= 32 else 0


def _load_what_is_there(frame: ImageFile.ImageFile) -> None:
    try:
        frame.load()
    except OSError:
        if frame.format != "TIFF" or frame.tile:
            raise
        frame.load()  # Pillow keeps the strips that libtiff decoded before the error


def _decoded_rows(image: Image.Image) -> tuple[int, int]:
    """The rows (first, end) that hold more than what decoders leave where nothing was decoded."""
    rows = np.asarray(image).reshape(image.height, -1)
    empty = (rows == rows[:, :1]).all(1) & np.isin(rows[:, 0], _NOT_DECODED)
    there = np.flatnonzero(~empty)
    return (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 0)


def _count_frames(image: Image.Image, name: str) -> tuple[int, bool]:
    """Pillow's ``n_frames``, but bounded: Pillow visits every frame that a file claims to have.

    Returns also whether the file breaks off behind the counted frames.
    """
    for count in range(1, _MOST_FRAMES + 1):
        try:
            image.seek(count)
        except EOFError:
            return count, False
        except MemoryError:
            raise
        except Exception:  # of a damaged file: anything
            return count, True
    raise InvalidInput(f"{name} has more than {_MOST_FRAMES:,} frames, the most that are read; split it")


def _reason(error: Exception) -> str:
    text = str(error)
    if "cannot identify" in text:  # the message holds an object's address, which is of no use
        return "not a known format, or damaged"
    return text[:100] or type(error).__name__
