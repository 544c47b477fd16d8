"""From the model's answer about one part of a page to the part's Markdown, by its label.

The text comes as the family presents it: tables are HTML, formulas stand between dollars.
"""

from __future__ import annotations

import re

from models.blocks import Block, Kind, kind_of

from .page_rules import PageRules

_CHINESE = "一二三四五六七八九十百千万亿零〇壹贰叁肆伍陆柒捌玖拾"
_NUMBERING = re.compile(
    rf"\s*((?:[1-9][0-9]*(?:\.[1-9][0-9]*)*[.、]?|[(（](?:[1-9][0-9]*|[{_CHINESE}]+)[)）]|[{_CHINESE}]+[、.]|"
    r"(?=[IVXLC])[IVXLC]{1,8}\.))\s*(?=\D)(.*)",
    re.DOTALL,
)
_ABSTRACT = re.compile(r"\s*(abstract|摘要)\b[\s.:：—-]*", re.IGNORECASE)
_FENCES = (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$"))
_BULLET = re.compile(r"(?m)^[ \t]*(?:[·•]|\*(?= ))[ \t]*")
_NUMBERED = re.compile(
    r"(?m)^([ \t]*)(?:([(（](?:[0-9]+|[A-Za-z])[)）])|((?:[0-9]+|[A-Za-z])[.)])(?![0-9]))[ \t]*(?=\S)"
)


def block_of(
    label: str, text: str, box: tuple[int, int, int, int], confidence: float | None, rules: PageRules
) -> Block:
    """The block of one part of a page."""
    kind: Kind = kind_of(label)
    level = 0
    text = text.strip()
    if label == "chart" and not rules.shows_picture(label):
        kind, text = "table", chart_table(text)
    elif kind == "title":
        text, level = _title(text, label, rules)
    elif kind == "formula":
        text = without_fence(text)
    elif kind == "caption":
        text = " ".join(text.split())
    elif label == "abstract" and rules.abstract_heading:
        text = _abstract(_paragraphs(text, rules))
    elif label == "content":
        text = re.sub(r"\s*\n\s*", "  \n", text)
    elif label == "formula_number":
        text = text.replace("$", "").strip()
    elif kind not in ("table", "algorithm", "code"):
        text = _paragraphs(text, rules)
    return Block(kind, text, box, label, confidence, level)


def without_fence(text: str) -> str:
    """LaTeX without delimiters around it: dollars, brackets, a code fence."""
    text = re.sub(r"\A```(?:latex|tex|math)?\n(.*?)\n?```\Z", r"\1", text.strip(), flags=re.DOTALL).strip()
    for start, end in _FENCES:
        inner = text[len(start) : len(text) - len(end)]
        if len(text) >= len(start) + len(end) and text.startswith(start) and text.endswith(end) and start not in inner:
            return inner.strip()
    return text


def chart_table(text: str) -> str:
    """The table of a chart, which the model writes with bars between its cells, as HTML with a head."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if line.strip()]
    rows = [row for row in rows if not all(re.fullmatch(r":?-{2,}:?", cell) for cell in row)]
    if not rows or max(map(len, rows)) < 2 or "<table" in text:
        return text
    width = max(map(len, rows))
    head, *body = ([*row, *[""] * (width - len(row))] for row in rows)
    return (
        f"<table><thead>{_row(head, 'th')}</thead><tbody>"
        + "".join(_row(row, "td") for row in body)
        + "</tbody></table>"
    )


def _row(cells: list[str], tag: str) -> str:
    escaped = (cell.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for cell in cells)
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in escaped) + "</tr>"


def _title(text: str, label: str, rules: PageRules) -> tuple[str, int]:
    """A title on one line, and its level: 1 for the document's, from 2 on by the dots of its number."""
    text = re.sub(r"-\n(?=[a-z])", "", text).replace("\n", " ")
    text = re.sub(r"\A#+\s*", "", text).strip()
    if label == "doc_title":
        return text, 1
    if not rules.title_levels or not text:
        return text, 2
    number = ""
    if found := _NUMBERING.fullmatch(text):
        number, rest = found[1], found[2].strip()
        text = f"{number} {rest}" if rest else number
    text = text.rstrip(".") or text
    return text, min(2 + number.rstrip(".").count("."), 6)


def _abstract(text: str) -> str:
    found = _ABSTRACT.match(text)
    if not found:
        return text
    rest = text[found.end() :].strip()
    return f"## {found[1]}\n\n{rest}" if rest else f"## {found[1]}"


def _paragraphs(text: str, rules: PageRules) -> str:
    if rules.tidy_lists:
        if text.count("```") % 2:
            text += "\n```"
        text = _BULLET.sub("- ", text)
        text = _NUMBERED.sub(lambda found: f"{found[1]}{found[2] or found[3]} ", text)
    if not rules.double_line_ends or "```" in text or "<table" in text:
        return text
    return re.sub(r"\n+", "\n\n", text)
