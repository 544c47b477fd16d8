"""An opened document, as its reader sees it; a worker process draws each page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from PIL import Image

from models.model_errors import InvalidInput
from models.turned import Orient

from .drawn import Drawn
from .limits import Stop, never
from .pages import count_pages
from .workers import Killed, Worker, Workers

T = TypeVar("T")


class Document:
    """Any thread may ask for pages. Close the document, or use it as a context manager."""

    def __init__(
        self, source: Path | bytes, name: str, max_pixels: int, workers: Workers | None, stop: Stop,
        how: Mapping[str, Any], orient: Orient = "off",
    ) -> None:  # fmt: skip
        """Use ``open_document``, which has the same errors. ``how``: options for the worker."""
        self.name = name
        self._max_pixels, self._orient = max_pixels, orient
        self._own = Workers(1) if workers is None else None
        self._workers = workers or self._own or Workers(1)
        self._number = self._workers.number()
        self._content = source if isinstance(source, bytes) else b""
        path = None if isinstance(source, bytes) else str(source.resolve())
        self._opening = {"do": "open", "path": path, "name": name, "max_pixels": max_pixels, **how}
        self._killed = 0
        self._closed = False
        self.page_count = 0
        try:
            self._work(lambda worker: None, f"{name} cannot be opened", stop)
        except BaseException:
            self.close()
            raise

    def size(self, index: int, stop: Stop = never) -> tuple[int, int]:
        """Width and height in pixels of a page as ``page`` gives it, without drawing. Raises as ``page``."""

        answer = self._measured(index, stop)
        return int(answer["width"]), int(answer["height"])

    def weight(self, index: int, stop: Stop = never) -> int:
        """Pixels that count for the memory that a page takes: its own, or more if a large picture is scaled down."""
        return int(self._measured(index, stop)["weight"])

    def _measured(self, index: int, stop: Stop) -> Mapping[str, Any]:
        return self._work(lambda worker: worker.ask({"do": "size", "page": index}), self._described(index), stop)

    def page(self, index: int, stop: Stop = never) -> Image.Image:
        """The picture of a page, turned only as the file says; see ``draw``."""
        return self._draw(index, stop, "off").image

    def draw(self, index: int, stop: Stop = never) -> Drawn:
        """One page, counted from 0: upright, in RGB, a new picture that the caller may keep or change.

        The file says how a page is turned; in a document opened with ``orient``, the page's text says, too.

        stop : asked about twenty times a second; once true, the drawing is ended.

        Raises
        ------
        InvalidInput
            when there is no such page, or the page cannot be decoded or drawn within the workers' limits.
        Stopped
            when ``stop`` turned true, or the workers were closed.
        """
        return self._draw(index, stop, self._orient)

    def _draw(self, index: int, stop: Stop, orient: Orient) -> Drawn:
        what = self._described(index)
        drawn = self._work(lambda worker: worker.draw(index, self._max_pixels, orient), what, stop)
        if self.page_count == 1:
            self._workers.forget(self._number)  # the worker need not keep a page that is hardly asked for again
        return drawn

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._closed = True
        self._content = b""
        self._workers.forget(self._number)
        if self._own is not None:
            self._own.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _described(self, index: int) -> str:
        if not 0 <= index < self.page_count:
            raise InvalidInput(f"{self.name} has {count_pages(self.page_count)}; there is no page {index + 1}")
        return f"page {index + 1} of {self.name} cannot be drawn"

    def _work(self, work: Callable[[Worker], T], failing: str, stop: Stop) -> T:
        """Let a worker do something with the open document. ``failing``: begins the message of a killed worker."""
        if self._is_closed():
            raise InvalidInput(f"{self.name} has been closed")
        most = self._workers.limits.most_killed
        if most is not None and self._killed >= most:
            raise InvalidInput(f"{failing}: {count_pages(self._killed)} went beyond the limits; the rest is not tried")
        try:
            with self._workers.worker(self._number, stop) as worker:
                if worker.holds != self._number:
                    worker.holds = None
                    self.page_count = int(worker.ask(self._opening, self._content)["pages"])
                    worker.holds = self._number
                return work(worker)
        except Killed as error:
            self._killed += 1
            raise InvalidInput(
                f"{failing}: {error}; leave it out, lower the dots per inch, or give it more time (page_timeout)"
            ) from error
        finally:
            if self._is_closed():  # closed meanwhile by another thread
                self._workers.forget(self._number)

    def _is_closed(self) -> bool:
        return self._closed
