"""The opened content of a request: images that are read together, or a document read page by page.

Each kind begins a generation on a loaded model, and describes the answer afterwards. For pages that a model reads
together see ``joint_pages``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from PIL import Image

from models.layout.task import is_document
from models.model_errors import InvalidInput
from models.settings import InferenceSettings
from models.turned import turned_size
from runtime.documents import Document, Stop
from runtime.requests import Finished, Generation, Request, Stage, TextDelta, TextModel, Timings, Usage

from .admission import Admission
from .documents import DocumentGeneration, DocumentPage
from .images import RequestPictures
from .joint_pages import describe_pages
from .logs import RequestRecord
from .page_fields import describe_blocks, describe_boxes, describe_flaws, describe_size, describe_warnings
from .schema import ReadingOptions


class Content(Protocol):
    """The images or the document of one request."""

    def begin(self, model: TextModel, prompt: str, settings: InferenceSettings) -> Generation:
        """Begin a generation on the model."""
        ...

    def report(self, model: TextModel, pieces: Sequence[TextDelta], finished: Finished) -> dict[str, Any]:
        """Fields of the answer's ``ocr`` field about pages and boxes, from the whole answer."""
        ...

    def draw(self, number: int) -> Image.Image:
        """A page of the document by its number, from 1, until the content is closed."""
        ...

    def close(self) -> None:
        """Give back files and pixels."""
        ...


class PicturesContent:
    """The images of a request, which are read together."""

    def __init__(
        self, pictures: RequestPictures, reading: ReadingOptions, client: str, stop: Stop, joint: bool
    ) -> None:
        self._pictures, self._reading, self._client, self._stop = pictures, reading, client, stop
        self._sizes = list(pictures.sizes)
        self._joint = joint and len(self._sizes) > 1
        self._held = ExitStack()  # pixels of a page that is read by its parts, held until its end

    def begin(self, model: TextModel, prompt: str, settings: InferenceSettings) -> Generation:
        with ExitStack() as held:
            images = held.enter_context(self._pictures.decoded(self._stop))
            if is_document(prompt):
                self._held.push(held.pop_all())
            reading = self._reading
            request = Request(
                prompt, images, settings, reading.raw, self._client, reading.alternatives, reading.page, reading.schema
            )
            return model.submit(request)

    def report(self, model: TextModel, pieces: Sequence[TextDelta], finished: Finished) -> dict[str, Any]:
        said = describe_warnings(self._pictures.warnings, self._pictures.truncated)
        rotated = self._pictures.rotated
        sizes = [turned_size(size, turn) for size, turn in zip(self._sizes, rotated, strict=True)]  # sizes as read
        numbers = range(1, len(sizes) + 1)
        if self._joint:
            return said | describe_pages(model, pieces, finished, numbers, sizes, self._reading.boxes, rotated)
        if self._reading.boxes or any(rotated):
            said["pages"] = list(map(describe_size, numbers, sizes, rotated))
        if flaws := describe_flaws(finished.blocks, 1):
            said["blocks_not_whole"] = flaws
        if not self._reading.boxes:
            return said
        (size,), (turn,) = sizes, rotated
        text = "".join(piece.text for piece in pieces)
        return {
            **said,
            "boxes": describe_boxes(model, text, size, 1, finished.blocks, turn),
            **({"blocks": describe_blocks(finished.blocks, 1, size, turn)} if finished.blocks else {}),
        }

    def draw(self, number: int) -> Image.Image:
        raise InvalidInput("there is no document")

    def close(self) -> None:
        self._pictures.close()
        self._held.close()


class DocumentContent:
    """The document of a request, which is read page by page."""

    def __init__(
        self, document: Document, indices: list[int], reading: ReadingOptions, record: RequestRecord,
        admission: Admission, stop: Stop,
    ) -> None:  # fmt: skip
        self._document, self._indices, self._reading, self._record = document, indices, reading, record
        self._admission, self._stop = admission, stop
        self._generation: DocumentGeneration | None = None

    def begin(self, model: TextModel, prompt: str, settings: InferenceSettings) -> Generation:
        self._generation = DocumentGeneration(
            model, self._document, self._indices, prompt, settings, self._reading, self._admission,
            self._stop, self._count, self._record.client,
        )  # fmt: skip
        return self._generation

    def report(self, model: TextModel, pieces: Sequence[TextDelta], finished: Finished) -> dict[str, Any]:
        assert self._generation is not None
        return self._generation.report(self._reading.boxes)

    def draw(self, number: int) -> Image.Image:
        return self._document.page(number - 1, self._stop)

    def close(self) -> None:
        if self._generation is not None:
            self._generation.close()
        self._document.close()

    def _count(self, page: DocumentPage) -> None:
        self._record.pages_done += 1
        ended = page.finished.detail if page.finished is not None else "error"
        self._record.metrics.pages.labels(self._record.model, "error" if page.error else ended).inc()


class Notice:
    """A generation of one fixed text: the readable answer to a request without an image."""

    def __init__(self, text: str) -> None:
        self._events: list[TextDelta | Finished] = [
            Finished("stop", "no_image", Usage(0, 0), Timings()),
            TextDelta(text, 0),
        ]

    def next_event(self, timeout: float | None = None) -> TextDelta | Finished | None:
        return self._events.pop() if self._events else None

    @property
    def stage(self) -> Stage:
        """See ``Generation``."""
        return "reading"

    def cancel(self) -> None:
        """Does nothing: a notice is not generated."""
