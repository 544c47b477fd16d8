"""A document's pages as one file: HTML that stands alone, Word, or a zip with Markdown and figures."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from models.grounding import pictures_in, to_markdown, with_pictures
from server.writers import page_file
from server.writers.word import WordFile


@dataclass(frozen=True)
class Page:
    """One page: the text as the model wrote it, its clean HTML, its figures as PNG or JPEG."""

    text: str
    html: str
    figures: list[bytes] = field(default_factory=list)


def _html(name: str, pages: Sequence[Page]) -> bytes:
    bodies = [page_file.with_figures(page.html, page.figures) for page in pages]
    return (page_file.head_of(name) + page_file.RULE.join(bodies) + page_file.TAIL).encode("utf-8", "replace")


def _docx(name: str, pages: Sequence[Page]) -> bytes:
    file = WordFile()
    for page in pages:
        file.add(page.html, page.figures)
    stream = io.BytesIO()
    file.save(stream)
    return stream.getvalue()


def _zip(name: str, pages: Sequence[Page]) -> bytes:
    """``NAME.md`` with links to ``images/``, where its figures are."""
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "document"
    stream = io.BytesIO()
    texts = []
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, page in enumerate(pages, 1):
            paths = [f"images/{stem}-p{number}-{n}.{page_file.ending_of(one)}" for n, one in enumerate(page.figures)]
            for path, content in zip(paths, page.figures, strict=True):
                archive.writestr(path, content)
            # Figures that did not come along leave no link.
            texts.append(
                to_markdown(
                    with_pictures(page.text, dict(zip(pictures_in(page.text), paths, strict=False))),
                    paths.__getitem__ if len(paths) >= page_file.figure_count(page.html) > 0 else None,
                )
            )
        archive.writestr(f"{stem}.md", "\n\n".join(texts) + "\n")
    return stream.getvalue()


# Name -> (how it is made, media type).
FORMATS: dict[str, tuple[Callable[[str, Sequence[Page]], bytes], str]] = {
    "html": (_html, "text/html; charset=utf-8"),
    "docx": (_docx, "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    "zip": (_zip, "application/zip"),
}
