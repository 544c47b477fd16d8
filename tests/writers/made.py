"""Documents written by the writers themselves, without a run: results and pictures come from the test."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from models.grounding import parse_boxes
from models.model_errors import InvalidInput
from server.writers import FORMATS, PageResult, page_blocks
from server.writers.material import Original


@dataclass
class Given:
    """See ``server.writers.material.Material``; ``drawn`` holds the pages that were asked for."""

    pictures: Mapping[int, Image.Image] = field(default_factory=dict)
    content: bytes = b""
    drawn: list[int] = field(default_factory=list)

    def picture(self, page: int) -> Image.Image:
        self.drawn.append(page)
        if page not in self.pictures:
            raise InvalidInput(f"page {page} cannot be drawn")
        return self.pictures[page]

    def original(self) -> Original:
        return Original(self.content)


NOTHING = Given()


def done(page: int, text: str, size: tuple[int, int] = (100, 200), **more: Any) -> PageResult:
    """A page that was read, with the places that its text names."""
    boxes = more.pop("boxes", ()) or tuple(parse_boxes(text, *size))
    blocks = page_blocks(text, boxes, more.pop("blocks", ()))
    return PageResult(page, "done", None, False, *size, text, boxes, blocks, finish_detail="eos", **more)


def written(form: str, results: Sequence[PageResult], material: Given = NOTHING, name: str = "x.pdf") -> bytes:
    """The file of a format."""
    file: Any = io.BytesIO() if FORMATS[form].binary else io.StringIO()
    writer = FORMATS[form].write(file, material)
    writer.begin({"document": name, "page_count": len(results), "model": "scripted"})
    for result in results:
        writer.page(result)
    writer.end()
    content: bytes | str = file.getvalue()
    return content.encode() if isinstance(content, str) else content


def script_of(texts: Sequence[str]) -> Callable[[int, Image.Image], str]:
    """What the scripted reader says of pages that are numbered by their colour."""
    return lambda number, page: texts[number]
