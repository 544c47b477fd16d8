"""Pages that a model reads together: one request to the engine, one answer for all.

For a family's joint tasks. The pages are a document's, or the images of a message; the answer is split at the mark that
the model writes between pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from models.blocks import blocks_of
from models.joint import joint_prompt, not_reached, page_parts
from models.model_errors import InvalidInput
from models.settings import InferenceSettings
from runtime.documents import Document, DrawnPages, Stop
from runtime.requests import Finished, Generation, Request, TextDelta, TextModel

from .admission import PATIENCE, Admission, Held
from .page_fields import describe_blocks, describe_boxes, describe_size, describe_warnings
from .schema import ReadingOptions


class JointPages:
    """The chosen pages of a document, as the content of one request; see ``contents.Content``."""

    def __init__(
        self, document: Document, indices: Sequence[int], reading: ReadingOptions, client: str, admission: Admission,
        stop: Stop,
    ) -> None:  # fmt: skip
        self._document, self._reading, self._client, self._stop = document, reading, client, stop

        def room(pixels: int) -> Held:
            return admission.take("pixels", pixels, wait=PATIENCE, is_gone=stop)

        self._pages = DrawnPages(document, indices, stop, room)

    def __len__(self) -> int:
        """Number of pages that are read."""
        return len(self._pages)

    def begin(self, model: TextModel, prompt: str, settings: InferenceSettings) -> Generation:
        """Submit all pages to the engine; each page's pixels are held until the page has been prepared.

        Pages that cannot be drawn are left out.

        Raises
        ------
        InvalidInput
            when no page can be drawn, and for more pages than fit into the model's context with the answer.
        QueueFull, EngineClosed, Unavailable, Stopped
            see ``TextModel.submit`` and ``Admission.take``.
        """
        reading, pages = self._reading, self._pages
        while True:
            asked = joint_prompt(prompt, len(pages))
            try:
                return model.submit(Request(asked, pages, settings, reading.raw, self._client, reading.alternatives))
            except InvalidInput as error:
                if not pages.leave_out(error):
                    raise

    def report(self, model: TextModel, pieces: Sequence[TextDelta], finished: Finished) -> dict[str, Any]:
        """See ``describe_pages``."""
        numbers, drawn = [index + 1 for index in self._pages.indices], self._pages
        found = describe_pages(model, pieces, finished, numbers, drawn.sizes, self._reading.boxes, drawn.rotated)
        for page, warnings, truncated in zip(found["pages"], self._pages.warnings, self._pages.truncated, strict=True):
            page |= describe_warnings(warnings, truncated)
        nothing = {"width": 0, "height": 0, "start": 0, "end": 0}
        lost = [{"page": index + 1, **nothing, "error": reason} for index, reason in self._pages.lost.items()]
        found["pages"] = sorted([*found["pages"], *lost], key=lambda page: int(page["page"]))
        return found

    def draw(self, number: int) -> Image.Image:
        """The picture of a page, drawn again, by its number from 1."""
        return self._document.page(number - 1, self._stop)

    def close(self) -> None:
        """Close the document. Idempotent."""
        self._document.close()


def describe_pages(
    model: TextModel, pieces: Sequence[TextDelta], finished: Finished, numbers: Sequence[int],
    sizes: Sequence[tuple[int, int]], boxes: bool, rotated: Sequence[float],
) -> dict[str, Any]:  # fmt: skip
    """Entries of the ``ocr`` field for pages that were read together: where each page's text is, and how it ended.

    numbers, sizes, rotated : of the pages: numbers from 1, sizes in pixels as read, and turns in degrees.
    boxes : whether to add the boxes on each page.
    """
    text = "".join(piece.text for piece in pieces)
    parts = page_parts([(piece.text, piece.token_count) for piece in pieces], len(numbers))
    pages, places, blocks = [], [], []
    for i, (number, size, turn) in enumerate(zip(numbers, sizes, rotated, strict=True)):
        page = describe_size(number, size, turn)
        if i < len(parts):
            part, last = parts[i], i + 1 == len(parts)
            page |= {"start": part.start, "end": part.end, "completion_tokens": part.tokens}
            page["finish_detail"] = finished.detail if last else "eos"
            own = text[part.start : part.end]
            named = blocks_of(model.boxes(own, *size))
            places += describe_boxes(model, own, size, number, named, turn)
            blocks += describe_blocks(named, number, size, turn)
        else:
            page |= {"start": len(text), "end": len(text), "error": not_reached(finished.detail)}
        pages.append(page)
    told = {"boxes": places, **({"blocks": blocks} if blocks else {})} if boxes else {}
    return {"pages": pages, **told}
