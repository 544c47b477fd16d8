"""One document to read: a file, standard input or a pipe. Found by ``inputs``; for addresses see ``buckets``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from PIL import Image

from runtime.documents import IMAGE_FORMATS, Document, How, Stop, Workers, open_document

STANDARD_INPUT = "-"
# Endings taken from a folder: all that Pillow knows for the formats that are read, HEIC where its decoder is installed.
# A file that is named itself may have any ending: its content decides.
Image.init()
SUFFIXES = (".pdf", *sorted(suffix for suffix, form in Image.EXTENSION.items() if form in IMAGE_FORMATS))
# Formats whose first bytes say that the file is one page.
_ONE_PAGE = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF87a", b"GIF89a", b"RIFF", b"\0\0\0\x0cjP  ",
             b"\xff\x4f\xff\x51", b"qoif")  # fmt: skip


@dataclass(frozen=True)
class DocumentSource:
    """One document to read."""

    path: Path | None  # absolute; None: standard input
    relative: PurePath  # relative to the input
    data: bytes | None = field(default=None, repr=False)  # content of standard input or a pipe
    problem: str | None = None  # why the source cannot be read; also set for a folder that cannot be listed

    @property
    def name(self) -> str:
        """The document's name in messages and in the run manifest."""
        return STANDARD_INPUT if self.path is None else str(self.path)

    def original(self) -> Path | bytes:
        """The file's path, or the content without a file."""
        return self.data if self.data is not None else self.path or b""

    @property
    def fingerprint(self) -> str:
        """Changes when the document does.

        Raises
        ------
        OSError
            when the file is gone.
        """
        if self.path is None or self.data is not None:
            return hashlib.sha256(self.data or b"").hexdigest()
        status = self.path.stat()
        return f"{status.st_size}-{status.st_mtime_ns}"

    def is_one_page(self) -> bool:
        """Whether the first bytes say that the document is one page, as most pictures' do.

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
        """Open the document; see ``runtime.documents.open_document``."""
        if self.path is None or self.data is not None:
            name = str(self.path or "standard input")
            return open_document(self.data or b"", name=name, workers=workers, stop=stop, **vars(how))
        return open_document(self.path, workers=workers, stop=stop, **vars(how))
