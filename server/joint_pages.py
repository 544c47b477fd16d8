"""A document whose pages a model reads together: all of them in one request to the engine, one answer for all.

For tasks that a family says are joint. The answer's pages are parted by the mark that the model writes between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from PIL import Image

from models.family import IMAGE_SLOT
from models.grounding import PAGE_BREAK
from models.settings import InferenceSettings
from runtime.documents import Document, Stop
from runtime.requests import Generation, Request, TextModel

from .admission import PATIENCE, Admission
from .documents import describe_boxes
from .schema import Reading


class JointPages:
    """The chosen pages of a document, as the content of one request; see ``generate``."""

    def __init__(
        self, document: Document, indices: Sequence[int], reading: Reading, client: str, admission: Admission,
        stop: Stop,
    ) -> None:  # fmt: skip
        self._document, self._indices, self._reading, self._client = document, list(indices), reading, client
        self._admission, self._stop = admission, stop
        self._sizes: list[tuple[int, int]] = []

    @property
    def count(self) -> int:
        """Pages that are read."""
        return len(self._indices)

    def begin(self, model: TextModel, prompt: str, settings: InferenceSettings) -> Generation:
        """Draw all pages and hand them to the engine; their pixels are held until they have been cut.

        Raises
        ------
        InvalidInput
            for a page that cannot be drawn, and for more pages than the model takes with its answer.
        QueueFull, EngineClosed, Unavailable, Stopped
            see ``TextModel.submit`` and ``Admission.take``.
        """
        with ExitStack() as held:
            pages: list[Image.Image] = []
            for index in self._indices:
                width, height = self._document.size(index, self._stop)
                pixels = self._admission.take("pixels", width * height, wait=PATIENCE, is_gone=self._stop)
                held.callback(pixels.release)
                pages.append(self._document.page(index, self._stop))
            self._sizes = [page.size for page in pages]
            prompt = "\n".join([IMAGE_SLOT] * len(pages)) + prompt.replace(IMAGE_SLOT, "")
            return model.submit(
                Request(prompt, pages, settings, self._reading.raw, self._client, self._reading.alternatives)
            )

    def report(self, model: TextModel, text: str) -> dict[str, Any]:
        """What the ``ocr`` field says of the pages: where each one's text stands, and the boxes of each on its page."""
        pages, boxes, start = [], [], 0
        texts = text.split(PAGE_BREAK, len(self._indices) - 1)
        for i, (index, size) in enumerate(zip(self._indices, self._sizes, strict=True)):
            own = texts[i] if i < len(texts) else ""
            pages.append(
                {"page": index + 1, "width": size[0], "height": size[1], "start": start, "end": start + len(own)}
            )
            start += len(own) + (len(PAGE_BREAK) if i + 1 < len(texts) else 0)
            boxes += describe_boxes(model, own, size, index + 1)
        return {"pages": pages, **({"boxes": boxes} if self._reading.boxes else {})}

    def draw(self, number: int) -> Image.Image:
        """A page once more, by its number from 1."""
        return self._document.page(number - 1, self._stop)

    def close(self) -> None:
        """Close the document. Idempotent as that is."""
        self._document.close()
