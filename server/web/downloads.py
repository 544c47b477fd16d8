"""A document's pages as one file: HTML that stands alone, Word, or a zip with Markdown and figures."""

from __future__ import annotations

import base64
import html
import io
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from models.grounding import to_markdown

from .word import word_file

_FIGURE = re.compile(r'<img data-figure="(\d+)"')
_STYLE = """
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.55 Georgia, serif; color: #1b1b1b }
table { border-collapse: collapse } td, th { border: 1px solid #999; padding: .2em .5em } img { max-width: 100% }
hr { margin: 3rem 0; border: 0; border-top: 1px solid #ccc } code { font-size: .9em }
""".strip()


@dataclass(frozen=True)
class Page:
    """One page: the text as the model wrote it, its clean HTML, its figures as PNG or JPEG."""

    text: str
    html: str
    figures: list[bytes] = field(default_factory=list)


def _html(name: str, pages: Sequence[Page]) -> bytes:
    bodies = [_with_figures(page) for page in pages]
    document = (
        f'<!doctype html>\n<html>\n<head><meta charset="utf-8"><title>{html.escape(name)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n<hr>\n".join(bodies) + "\n</body>\n</html>\n"
    )
    return document.encode("utf-8", "replace")


def _with_figures(page: Page) -> str:
    return _FIGURE.sub(lambda found: _embedded(page, int(found[1])), page.html)


def _embedded(page: Page, number: int) -> str:
    if number >= len(page.figures):
        return f'<img data-figure="{number}"'
    content = page.figures[number]
    return f'<img src="data:image/{_ending(content)};base64,{base64.b64encode(content).decode()}"'


def _docx(name: str, pages: Sequence[Page]) -> bytes:
    return word_file((page.html, page.figures) for page in pages)


def _zip(name: str, pages: Sequence[Page]) -> bytes:
    """``NAME.md`` with links to ``images/``, where its figures are."""
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "document"
    stream = io.BytesIO()
    texts = []
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, page in enumerate(pages, 1):
            paths = [f"images/{stem}-p{number}-{n}.{_ending(one)}" for n, one in enumerate(page.figures)]
            for path, content in zip(paths, page.figures, strict=True):
                archive.writestr(path, content)
            # Figures that did not come along leave no link.
            texts.append(to_markdown(page.text, paths.__getitem__ if len(paths) >= _figure_count(page) > 0 else None))
        archive.writestr(f"{stem}.md", "\n\n".join(texts) + "\n")
    return stream.getvalue()


def _figure_count(page: Page) -> int:
    return len(_FIGURE.findall(page.html))


def _ending(content: bytes) -> str:
    return "png" if content.startswith(b"\x89PNG") else "jpeg"


# Name -> (how it is made, media type).
FORMATS: dict[str, tuple[Callable[[str, Sequence[Page]], bytes], str]] = {
    "html": (_html, "text/html; charset=utf-8"),
    "docx": (_docx, "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    "zip": (_zip, "application/zip"),
}
