"""Opens the document of a request: its data: URL, within limits, and the pages that the client chose."""

from __future__ import annotations

from dataclasses import dataclass

from models.model_errors import InvalidInput
from models.pixels import Transparency
from models.turned import Orient
from runtime.documents import DEFAULT_DPI, Document, Stop, Workers, enough_pixels, never, open_document, parse_pages
from server.api_errors import BadRequest

from .images import decode_data_url


@dataclass(frozen=True)
class DocumentReader:
    """Opens the document of one request."""

    workers: Workers
    max_bytes: int = 20 << 20
    max_pixels: int = 50_000_000  # pixels of one page
    max_pages: int = 200

    def open(
        self,
        url: str,
        pages: str | None,
        stop: Stop = never,
        transparency: Transparency = "white",
        password: str | None = None,
        orient: Orient = "off",
        seen_pixels: int | None = None,
        dpi: int | None = None,
    ) -> tuple[Document, list[int]]:
        """The document in a data: URL and its chosen pages, counted from 0.

        seen_pixels : pixels of a page that the model sees; pages are drawn just large enough.
        dpi : dots per inch to draw pages at, whatever the model sees; None: the default, and no more than the model
        sees.

        Raises
        ------
        BadRequest, InvalidInput
            for a damaged or encrypted file, one that is no document, and for pages that are missing or too many.
        TooLarge
            for too many bytes.
        Stopped
            when ``stop`` turned true.
        """
        url = url.strip()
        if url[:5].lower() != "data:":
            raise BadRequest(
                "file_data must be a data: URL (data:application/pdf;base64,...); files and paths of the server are "
                "not read",
                param="file_data",
                code="invalid_file_data",
            )
        content = decode_data_url(url, self.max_bytes, "file", "file_data")
        try:
            document = open_document(
                content, name="the file", max_pixels=self.max_pixels, workers=self.workers, stop=stop,
                transparency=transparency, password=password, orient=orient,
                dpi=dpi or DEFAULT_DPI, shown_pixels=enough_pixels(seen_pixels) if dpi is None else None,
            )  # fmt: skip
        except InvalidInput as error:
            raise BadRequest(str(error), param="file_data", code="invalid_file") from error
        try:
            return document, self._choose(pages, document.page_count)
        except BaseException:
            document.close()
            raise

    def _choose(self, pages: str | None, count: int) -> list[int]:
        try:
            chosen = list(range(count)) if pages is None else parse_pages(pages, count)
        except InvalidInput as error:
            raise BadRequest(str(error), param="ocr.pages", code="invalid_pages") from error
        if len(chosen) > self.max_pages:
            raise BadRequest(
                f"{len(chosen)} pages in one request; the limit is {self.max_pages} (--max-pages); choose some with "
                f'"ocr": {{"pages": "1-{self.max_pages}"}}',
                param="ocr.pages",
                code="too_many_pages",
            )
        return chosen
