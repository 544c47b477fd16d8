"""OmniDocBench (Ouyang et al., arXiv 2412.07626): its pages, and its end-to-end scores by its ``simple_match``.

The benchmark has several ways to pair a reading with the truth. ``simple_match``, which is computed here, is defined by
an optimum (the pairs with the least total edit distance); ``quick_match``, which the leaderboard uses, also merges and
splits paragraphs, by rules that change between versions, and compares formulas by rendering them (CDM). For figures to
publish, run the benchmark's own program on the files that ``eval`` writes.

A page's text and formula blocks are paired with those read, all at once; tables with tables. Captions, headers,
footers, page numbers and footnotes are paired, but not scored, and neither are surplus blocks. One difference from the
benchmark's program: there, the first block read is left out of the order.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from pylatexenc.latex2text import LatexNodes2Text
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from scipy.optimize import linear_sum_assignment

from models.model_errors import InvalidInput
from server.writers.markdown_blocks import markdown_blocks

from .tables import TableScore, score_tables, tables_of
from .text import distance

ANNOTATIONS = "OmniDocBench.json"

_TEXT = frozenset({"text_block", "title", "code_txt", "code_txt_caption", "reference", "list_group"})
_SILENT = frozenset({
    "figure_caption", "figure_footnote", "table_caption", "table_footnote", "code_algorithm", "code_algorithm_caption",
    "header", "footer", "page_footnote", "page_number", "equation_caption",
})  # fmt: skip
_FORMULA, _TABLE = "equation_isolated", "table"

_INLINE = re.compile(r"\$(.*?)\$|\\\((.*?)\\\)")
_NO_WORD = re.compile(r"[^\w\u4e00-\u9fff]")
_WITHOUT_ARGUMENT = re.compile(r"\\(?:tag|hspace|begin|end)\{.*?\}|\\arraycolsep.*?\}")
_NO_MEANING = (
    "\\mathbfcal", "\\mathbf", "\\mathrm", "\\mathnormal", "\\mathit", "\\mathbb", "\\mathcal", "\\mathscr",
    "\\mathfrak", "\\mathsf", "\\mathtt", "\\textbf", "\\text", "\\boldmath", "\\boldsymbol", "\\operatorname", "\\bm",
    "\\symbfit", "\\symbf", "\\scriptscriptstyle", "\\notag", "\\setlength", "\\coloneqq", "\\space", "\\thickspace",
    "\\thinspace", "\\medspace", "\\nobreakspace", "\\negmedspace", "\\qquad", "\\quad", "\\enspace", " ", "$$",
    "\\left", "\\right", "\\displaystyle",
)  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """One annotated page.

    image : its file below ``images/``. blocks : (category, text, order) of text and formulas, in order.
    tables : their HTML.
    """

    image: str
    blocks: tuple[tuple[str, str, float], ...]
    tables: tuple[str, ...]


@dataclass(frozen=True)
class PageScore:
    """Scores of one page; None for a kind that the page lacks.

    text, formula : wrong characters by characters of the longer of each pair. order : see ``score_order``.
    """

    text: float | None
    formula: float | None
    order: float | None
    tables: tuple[TableScore, ...] = field(default=())


def load_truth(folder: Path) -> list[Truth]:
    """The annotated pages of a copy of the data set.

    Raises
    ------
    InvalidInput
        when the folder has no annotations, or annotations of an unknown layout.
    """
    file = folder / ANNOTATIONS
    try:
        pages = json.loads(file.read_text(encoding="utf-8"))
        return [_truth(page) for page in pages]
    except OSError as error:
        raise InvalidInput(f"{folder} is no copy of OmniDocBench: {file.name} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{file} is not laid out as OmniDocBench's annotations: {error!r}") from error


def _truth(page: Mapping[str, Any]) -> Truth:
    parts = {part["anno_id"]: dict(part) for part in page["layout_dets"] if not part.get("ignore")}
    for relation in page.get("extra", {}).get("relation", ()):
        if relation.get("relation_type", relation.get("relation")) != "truncated":
            continue
        first, second = parts.get(relation["source_anno_id"]), parts.get(relation["target_anno_id"])
        if first is not None and second is not None and first is not second:  # one paragraph, split by a column's end
            first["text"] = f"{first.get('text', '')}{second.get('text', '')}"
            parts[relation["target_anno_id"]] = first
    found, blocks, tables = set(), [], []
    for part in parts.values():
        if id(part) in found:
            continue
        found.add(id(part))
        category, order = part["category_type"], part.get("order")
        if category == _TABLE:
            tables.append(part["html"])
        elif category in _TEXT | _SILENT | {_FORMULA}:
            text = part.get("latex" if category == _FORMULA else "text") or ""
            blocks.append((category, text, float("inf") if order is None else float(order)))
    blocks.sort(key=lambda block: block[2])
    return Truth(Path(page["page_info"]["image_path"]).name, tuple(blocks), tuple(tables))


def score_page(truth: Truth, read: str) -> PageScore:
    """Score the reading of a page, in Markdown."""
    read_blocks = [block for block in markdown_blocks(read) if block.kind not in ("figure", _TABLE)]
    lines = [
        normalised_formula(block.text) if block.kind == "formula" else normalised_text(block.text)
        for block in read_blocks
    ]
    lines = [line for line in lines if line]
    wanted = [
        (category, normalised_formula(text) if category == _FORMULA else normalised_text(text), order)
        for category, text, order in truth.blocks
    ]
    wanted = [one for one in wanted if one[1]]
    pairs = _paired([line for _, line, _ in wanted], lines)
    texts, formulas, as_read = [], [], []
    for (category, line, order), place in zip(wanted, pairs, strict=True):
        pair = (line, "" if place is None else lines[place])
        if category == _FORMULA:
            formulas.append(pair)
        elif category in _TEXT:
            texts.append(pair)
            if place is not None:
                as_read.append((place, order))
    tables = score_tables([t for html_ in truth.tables for t in tables_of(normalised_table(html_))],
                          [normalised_table(table) for table in tables_of(read)]) if truth.tables else []  # fmt: skip
    return PageScore(_rate(texts), _rate(formulas), _order(wanted, as_read), tuple(tables))


def _paired(wanted: Sequence[str], lines: Sequence[str]) -> list[int | None]:
    """For each wanted line the index of its partner, such that the sum of normalised edit distances is minimal."""
    partners: list[int | None] = [None] * len(wanted)
    if wanted and lines:
        unlike = process.cdist(wanted, lines, scorer=Levenshtein.normalized_distance)
        for i, j in zip(*linear_sum_assignment(unlike), strict=True):
            partners[int(i)] = int(j)
    return partners


def _rate(pairs: Sequence[tuple[str, str]]) -> float | None:
    longest = sum(max(map(len, pair)) for pair in pairs)
    return sum(Levenshtein.distance(*pair) for pair in pairs) / longest if longest else None


def _order(wanted: Sequence[tuple[str, str, float]], as_read: Sequence[tuple[int, float]]) -> float | None:
    orders = sorted(order for category, _, order in wanted if category in _TEXT)
    read = [order for _, order in sorted(as_read)]
    return distance(orders, read) if orders or read else None


def normalised_text(text: str) -> str:
    """Letters, digits and Chinese characters of a text, inline formulas as Unicode where LaTeX has a character."""
    text = _INLINE.sub(lambda found: _unicode(found[0], found[1] if found[1] is not None else found[2]), text)
    for blank in ("\\t", "\\n", "\t", "\n", "/t", "/n"):
        text = text.replace(blank, "")
    return _NO_WORD.sub("", text)


def _unicode(whole: str, formula: str) -> str:
    formula = re.sub(r"\\([\\_&%^])", "", formula)
    if not any(sign in formula for sign in "\\^_"):
        return whole
    try:
        return str(LatexNodes2Text().latex_to_text(formula + " " * formula.endswith("\\"))).strip()
    except Exception:  # broken LaTeX can raise anything; the benchmark keeps the source then
        return whole


def normalised_formula(latex: str) -> str:
    """Without delimiters, tags, fonts, blanks and upper case."""
    latex = latex.strip().strip("$").strip("\n")
    if found := re.search(r"\\\[(.+?)(?<!\\)\\\]", latex):
        latex = found[1].strip()
    latex = _WITHOUT_ARGUMENT.sub("", latex).strip(".")
    for word in _NO_MEANING:
        latex = latex.replace(word, "")
    return latex.lower()


def normalised_table(table: str) -> str:
    """Compatibility characters composed, entities resolved, no line ends."""
    return unicodedata.normalize("NFKC", html.unescape(table).replace("\n", "")).strip()


def summary(scores: Iterable[PageScore]) -> dict[str, float | int | None]:
    """Means over the pages that have a kind, as in the benchmark; of tables over all tables."""
    scores = list(scores)
    tables = [table for score in scores for table in score.tables]
    return {
        "pages": len(scores),
        "text_edit_distance": _mean(score.text for score in scores),
        "formula_edit_distance": _mean(score.formula for score in scores),
        "table_teds": _mean(table.teds for table in tables),
        "table_teds_structure": _mean(table.structure for table in tables),
        "reading_order_edit_distance": _mean(score.order for score in scores),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(mean(known), 4) if known else None
