"""Opens a document again when its results are written, for writers that need more than the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from PIL import Image

from runtime.documents import Document
from server.writers.material import Original

from .source import DocumentSource


class OpenedAgain:
    """See ``writers.material.Material``. Opens the document on first use; a context manager."""

    def __init__(self, source: DocumentSource, open_document: Callable[[], Document], password: str) -> None:
        """password : the document's; empty for a document without one."""
        self._source, self._open, self._password = source, open_document, password
        self._document: Document | None = None
        self._last: tuple[int, Image.Image] | None = None  # several formats may want the same page

    def picture(self, page: int) -> Image.Image:
        if self._last is None or self._last[0] != page:
            self._document = self._document or self._open()
            self._last = (page, self._document.page(page - 1))
        return self._last[1]

    def original(self) -> Original:
        return Original(self._source.original(), self._password)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._last = None
        if self._document is not None:
            self._document.close()
