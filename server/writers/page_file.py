"""HTML in one clean file, with formulas as MathML and embedded figures. Needs the extra ``formats``."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from models.blocks import figures_of
from models.grounding import has_places, with_pictures

from .material import Material, figure_pictures
from .plain import printable
from .render import FIGURE, page_html
from .result import PageResult
from .text import TextFile

_FIGURE = re.compile(r'<img data-figure="(\d+)"')
_STYLE = """
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.55 Georgia, serif; color: #1b1b1b }
table { border-collapse: collapse } td, th { border: 1px solid #999; padding: .2em .5em } img { max-width: 100% }
hr { margin: 3rem 0; border: 0; border-top: 1px solid #ccc } code { font-size: .9em }
""".strip()
# A model's text is a stranger's, and no server's headers protect the reader of this file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

RULE = "\n<hr>\n"  # between two pages
TAIL = "\n</body>\n</html>\n"


def head_of(name: str) -> str:
    """The file's text before the pages."""
    return (
        '<!doctype html>\n<html>\n<head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{html.escape(printable(name))}</title>\n"
        f"<style>{_STYLE}</style></head>\n<body>\n"
    )


def with_figures(markup: str, figures: Sequence[bytes]) -> str:
    """A page's clean HTML with embedded figures, PNG or JPEG; a figure without a picture stays empty."""

    def embedded(found: re.Match[str]) -> str:
        number = int(found[1])
        if number >= len(figures):
            return found[0]
        content = figures[number]
        return f'<img src="data:image/{ending_of(content)};base64,{base64.b64encode(content).decode()}"'

    return _FIGURE.sub(embedded, markup)


def figure_count(markup: str) -> int:
    """Number of figures in a page's clean HTML."""
    return len(_FIGURE.findall(markup))


def ending_of(picture: bytes) -> str:
    """The picture's type, ``png`` or ``jpeg``."""
    return "png" if picture.startswith(b"\x89PNG") else "jpeg"


class HtmlWriter:
    """Writes pages separated by rules."""

    def __init__(self, file: TextFile, material: Material) -> None:
        self._file, self._material = file, material
        self._first = True

    def begin(self, head: Mapping[str, Any]) -> None:
        self._file.write(head_of(PurePath(head["document"]).name))

    def page(self, result: PageResult) -> None:
        if not self._first:
            self._file.write(RULE)
        self._first = False
        if result.state == "failed":
            words = f"page {result.page} could not be read: {result.error}"
            self._file.write(
                f'<section id="page-{result.page}"><p><em>{html.escape(printable(words))}</em></p></section>'
            )
        else:
            markup = with_figures(page_html_of(result), figure_pictures(result, self._material))
            self._file.write(f'<section id="page-{result.page}">\n{markup}\n</section>')

    def end(self) -> None:
        self._file.write(TAIL)
        self._file.flush()


def page_html_of(result: PageResult) -> str:
    """A page's clean HTML, with figures numbered as in ``figure_pictures``."""
    if has_places(result.text):
        return page_html(result.text, [(box.label, box.text) for box in result.boxes], longest=None)
    places = {box.box: f"{FIGURE}{number}" for number, box in enumerate(figures_of(result.boxes, result.text))}
    return page_html(with_pictures(result.text, places), longest=None)
