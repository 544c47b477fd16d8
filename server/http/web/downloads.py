"""A document's pages as one file: HTML, Word or a zip with figures, and all formats of ``read``.

The formats of ``read`` are made by ``server.writers``, as on the command line.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from models.grounding import pictures_in, to_markdown, with_pictures
from server.writers import FORMATS as WRITTEN
from server.writers import PageResult, page_file
from server.writers.material import Original


@dataclass(frozen=True)
class ReadPage:
    """One page: the result, a function that makes its clean HTML, and its figures as PNG or JPEG."""

    result: PageResult
    make_html: Callable[[], str]
    figures: list[bytes] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The model's own text."""
        return self.result.text


@dataclass(frozen=True)
class Sent:
    """See ``writers.material.Material``: of a document whose pages the browser sent as pictures.

    draw : number of a page, from 1 -> its picture; raises InvalidInput for a missing or damaged one.
    """

    draw: Callable[[int], Image.Image]

    def picture(self, page: int) -> Image.Image:
        return self.draw(page)

    def original(self) -> Original:
        return Original(b"")


def _html(name: str, pages: Sequence[ReadPage], sent: Sent) -> bytes:
    bodies = [page_file.with_figures(page.make_html(), page.figures) for page in pages]
    return (page_file.head_of(name) + page_file.RULE.join(bodies) + page_file.TAIL).encode("utf-8", "replace")


def _docx(name: str, pages: Sequence[ReadPage], sent: Sent) -> bytes:
    from server.writers.word import WordFile  # imports libraries whose memory a server without downloads does not need

    file = WordFile()
    for page in pages:
        file.add(page.make_html(), page.figures)
    stream = io.BytesIO()
    file.save(stream)
    return stream.getvalue()


def _zip(name: str, pages: Sequence[ReadPage], sent: Sent) -> bytes:
    """``NAME.md`` with links to its figures in ``images/``."""
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "document"
    stream = io.BytesIO()
    texts = []
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, page in enumerate(pages, 1):
            paths = [f"images/{stem}-p{number}-{n}.{page_file.ending_of(one)}" for n, one in enumerate(page.figures)]
            for path, content in zip(paths, page.figures, strict=True):
                archive.writestr(path, content)
            # Figures that were not sent leave no link.
            texts.append(
                to_markdown(
                    with_pictures(page.text, dict(zip(pictures_in(page.text), paths, strict=False))),
                    paths.__getitem__ if len(paths) >= page_file.figure_count(page.make_html()) > 0 else None,
                )
            )
        archive.writestr(f"{stem}.md", "\n\n".join(texts) + "\n")
    return stream.getvalue()


def _written(form: str) -> Callable[[str, Sequence[ReadPage], Sent], bytes]:
    """One of the formats that ``read`` writes."""

    def make(name: str, pages: Sequence[ReadPage], sent: Sent) -> bytes:
        stream = io.BytesIO()
        file = stream if WRITTEN[form].binary else io.TextIOWrapper(stream, "utf-8", "backslashreplace", newline="\n")
        writer = WRITTEN[form].write(file, sent)
        writer.begin({"document": name, "page_count": len(pages)})
        for page in pages:
            writer.page(page.result)
        writer.end()
        file.flush()
        return stream.getvalue()

    return make


_MEDIA_TYPES = {
    "md": "text/markdown; charset=utf-8",
    "json": "application/json",
    "jsonl": "application/x-ndjson; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "csv": "text/csv; charset=utf-8",
    "hocr": "application/xhtml+xml; charset=utf-8",
    "alto": "application/xml; charset=utf-8",
    "pdf": "application/pdf",
    "pdf-a": "application/pdf",
}

# Name -> (function that makes the file, media type).
FORMATS: dict[str, tuple[Callable[[str, Sequence[ReadPage], Sent], bytes], str]] = {
    "html": (_html, "text/html; charset=utf-8"),
    "docx": (_docx, "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    "zip": (_zip, "application/zip"),
    **{form: (_written(form), media_type) for form, media_type in _MEDIA_TYPES.items()},
}
