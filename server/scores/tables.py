"""Tables: the similarity of their trees, TEDS (Zhong et al., arXiv 1911.10683), computed as in PubTabNet.

As in OmniDocBench, head cells count as cells, and row groups do not count: they are markup, not content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apted import APTED
from lxml import html
from scipy.optimize import linear_sum_assignment
from table_recognition_metric import TEDS
from table_recognition_metric.utils import CustomConfig

from server.writers.render import page_html


@dataclass(frozen=True)
class TableScore:
    """teds : with the cells' text. structure : the tree alone. Both 0 to 1; 0 for a table that was not read."""

    teds: float
    structure: float


def tables_of(markdown: str) -> list[str]:
    """The tables of a page in any of their forms, as bare HTML, in order."""
    page = html.fragment_fromstring(page_html(markdown, longest=None), create_parent="div")
    return [_bare(table) for table in page.iter("table")]


def score_tables(truth: Sequence[str], read: Sequence[str]) -> list[TableScore]:
    """One score for each table of the truth, paired with a table read for the largest sum of similarities.

    Surplus tables cost nothing here; their text counts as text.
    """
    if not truth or not read:
        return [TableScore(0.0, 0.0) for _ in truth]
    similar = [[_teds(one, other, structure_only=False) for other in read] for one in truth]
    pairs = dict(zip(*linear_sum_assignment(similar, maximize=True), strict=True))
    return [
        TableScore(similar[i][pairs[i]], _teds(table, read[pairs[i]], structure_only=True)) if i in pairs
        else TableScore(0.0, 0.0)
        for i, table in enumerate(truth)
    ]  # fmt: skip


def _teds(truth: str, read: str, *, structure_only: bool) -> float:
    """1 - edit distance of the trees / nodes of the larger one, the table itself not among them, as PubTabNet counts
    (its packaged form counts one more)."""
    reader = TEDS(structure_only=structure_only)
    tables = [next(html.fromstring(one).iter("table")) for one in (truth, read)]
    trees = [reader.load_html_tree(table) for table in tables]
    nodes = max(sum(1 for _ in table.iterdescendants()) for table in tables)
    changes: float = APTED(*trees, CustomConfig()).compute_edit_distance()
    return 1.0 - changes / max(1, nodes)


def _bare(table: html.HtmlElement) -> str:
    """The table with spans as its only attributes, and with td in place of th."""
    for element in list(table.iter()):
        if element.tag == "th":
            element.tag = "td"
        for name in set(element.attrib) - {"rowspan", "colspan"}:
            del element.attrib[name]
        if element.tag == "td":
            words = " ".join("".join(element.itertext()).split())
            for child in list(element):
                element.remove(child)
            element.text = words
    for element in list(table.iter("thead", "tbody", "tfoot", "caption")):
        element.drop_tag()
    table.tail = None
    return f"<html><body>{html.tostring(table, encoding='unicode')}</body></html>"
