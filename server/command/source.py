"""One document to read: a file, or what standard input or a pipe gave. ``inputs`` finds them; see ``buckets`` too."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from PIL import Image

from runtime.documents import IMAGE_FORMATS, Document, How, Stop, Workers, open_document

STANDARD_INPUT = "-"
# What is taken from a folder: all endings that Pillow knows for what is read, HEIC where what reads it is installed. A
# file that is named itself may have any ending: its content decides.
Image.init()
SUFFIXES = (".pdf", *sorted(suffix for suffix, form in Image.EXTENSION.items() if form in IMAGE_FORMATS))
# Of these the first bytes say that they are one page, without opening them.
_ONE_PAGE = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF87a", b"GIF89a", b"RIFF", b"\0\0\0\x0cjP  ",
             b"\xff\x4f\xff\x51", b"qoif")  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One document to read."""

    path: Path | None  # absolute; None: standard input
    relative: PurePath  # to the input that it was found under
    data: bytes | None = field(default=None, repr=False)  # of what can be read once only: standard input, a pipe
    problem: str | None = None  # why it cannot be read; of a folder below an input, whose documents nobody knows

    @property
    def name(self) -> str:
        """What messages and the run manifest call it."""
        return STANDARD_INPUT if self.path is None else str(self.path)

    def original(self) -> Path | bytes:
        """The file, or the content of what is none."""
        return self.data if self.data is not None else self.path or b""

    @property
    def fingerprint(self) -> str:
        """Changes when the document does.

        Raises
        ------
        OSError
            when the file is not there any more.
        """
        if self.path is None or self.data is not None:
            return hashlib.sha256(self.data or b"").hexdigest()
        status = self.path.stat()
        return f"{status.st_size}-{status.st_mtime_ns}"

    def is_one_page(self) -> bool:
        """Whether its first bytes say so, as most pictures' do.

        Raises
        ------
        OSError
            when the file cannot be read.
        """
        if self.path is None or self.data is not None:
            return False
        with self.path.open("rb") as file:
            start = file.read(8)
        return start.startswith(_ONE_PAGE) or start.endswith(b"ftyp")  # AVIF, HEIC

    def open(self, how: How, workers: Workers, stop: Stop) -> Document:
        """Open it; see ``runtime.documents.open_document``."""
        if self.path is None or self.data is not None:
            name = str(self.path or "standard input")
            return open_document(self.data or b"", name=name, workers=workers, stop=stop, **vars(how))
        return open_document(self.path, workers=workers, stop=stop, **vars(how))
