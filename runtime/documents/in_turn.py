"""A document's pages as the images of one request: drawn one after the other, and not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from PIL import Image

from models.model_errors import InvalidInput

from .document import Document
from .limits import Stop, never

Room = Callable[[int], AbstractContextManager[object]]  # pixels -> context that reserves so many for a page


class DrawnPages:
    """See ``runtime.requests.Images``.

    indices : of the pages, from 0. Of the pages drawn so far, in order: sizes : width and height in pixels;
    warnings, truncated, rotated : see ``Drawn``. lost : pages that were left out since they cannot be drawn, with the
    reason.
    """

    def __init__(
        self, document: Document, indices: Sequence[int], stop: Stop = never, room: Room = lambda pixels: nullcontext()
    ) -> None:
        """Iterating raises what ``Document.page`` and ``room`` raise."""
        self.indices = list(indices)
        self.sizes: list[tuple[int, int]] = []
        self.warnings: list[tuple[str, ...]] = []
        self.truncated: list[bool] = []
        self.rotated: list[float] = []
        self.lost: dict[int, str] = {}
        self._document, self._stop, self._room = document, stop, room
        self._failing: int | None = None  # the page being drawn, or whose drawing has raised

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Image.Image]:
        self.sizes, self.warnings, self.truncated, self.rotated = [], [], [], []
        for index in self.indices:
            self._failing = index
            width, height = self._document.size(index, self._stop)
            with self._room(width * height):
                drawn = self._document.draw(index, self._stop)
                self._failing = None
                self.sizes.append(drawn.image.size)
                self.warnings.append(drawn.warnings)
                self.truncated.append(drawn.truncated)
                self.rotated.append(drawn.rotated)
                yield drawn.image

    def leave_out(self, error: InvalidInput) -> bool:
        """After an error: skip the page that could not be drawn; False if no page failed or only one is left."""
        failing, self._failing = self._failing, None
        if failing is None or len(self.indices) == 1:
            return False
        self.indices.remove(failing)
        self.lost[failing] = str(error)
        return True
