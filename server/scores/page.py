"""Compares the truth and the reading of one page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, Self

from lxml import html

from server.writers.render import page_html
from server.writers.result import page_blocks

from .order import score_order
from .tables import TableScore, score_tables, tables_of
from .text import TextScore, score_text

_SILENT = ("figure", "table")  # kinds without text of their own; tables have their own score
_APART = ("p", "td", "th", "tr", "li", "br", "div", "h1", "h2", "h3", "h4", "h5", "h6", "pre")  # separators of words


@dataclass(frozen=True)
class Comparison:
    """Comparison of a page, a document or many.

    orders : of each page that has one, see ``order.score_order``.
    """

    text: TextScore = field(default_factory=TextScore)
    tables: tuple[TableScore, ...] = ()
    orders: tuple[float, ...] = ()

    def __add__(self, other: Self) -> Comparison:
        return Comparison(self.text + other.text, self.tables + other.tables, self.orders + other.orders)

    def to_json(self) -> dict[str, Any]:
        """Rates and means; None where there is nothing to compare."""
        return {
            "characters": self.text.characters,
            "words": self.text.words,
            "character_error_rate": _rounded(self.text.character_error_rate),
            "word_error_rate": _rounded(self.text.word_error_rate),
            "edit_distance": _rounded(self.text.edit_distance),
            "tables": len(self.tables),
            "teds": _mean(table.teds for table in self.tables),
            "teds_structure": _mean(table.structure for table in self.tables),
            "reading_order": _mean(self.orders),
        }


def compare_page(truth: str, read: str) -> Comparison:
    """Compare two pages in Markdown. Text in tables counts as text, too."""
    order = score_order(_texts(truth), _texts(read))
    return Comparison(
        score_text(_words(truth), _words(read)),
        tuple(score_tables(tables_of(truth), tables_of(read))),
        () if order is None else (order,),
    )


def _texts(markdown: str) -> list[str]:
    return [block.text for block in page_blocks(markdown, (), ()) if block.kind not in _SILENT]


def _words(markdown: str) -> str:
    """All words of the page, without Markdown's and tables' markup."""
    page = html.fragment_fromstring(page_html(markdown, longest=None), create_parent="div")
    for element in page.iter(*_APART):
        element.tail = f" {element.tail or ''}"
    return str(page.text_content())


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return round(mean(values), 4) if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
