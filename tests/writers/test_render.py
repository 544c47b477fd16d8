"""A model's text as HTML: what is shown, and what never gets through."""

from __future__ import annotations

import re

import lxml.html
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.model_errors import InvalidInput
from server.writers.render import MOST_CHARACTERS, clean, page_html
from tests.web.web_server import HOSTILE, MARKDOWN

_TEXT = ("href", "title", "rel", "class", "alt", "data-figure", "data-boxes", "start", "colspan", "rowspan")
_MATH = (
    "display",
    "fence",
    "stretchy",
    "separator",
    "form",
    "mathvariant",
    "displaystyle",
    "scriptlevel",
    "columnalign",
)
_ATTRIBUTES = {*_TEXT, *_MATH, "columnalign"}
_DANGEROUS = frozenset(["script", "style", "iframe", "object", "embed", "svg", "form", "input", "link", "meta", "base"])


def _is_harmless(markup: str) -> bool:
    """An independent look: parsed by another parser, nothing runs, loads or leads to a script."""
    body = lxml.html.fragment_fromstring(markup, create_parent="body")
    for element in body.iter():
        if not isinstance(element.tag, str):
            return False
        if element.tag in _DANGEROUS:
            return False
        for name, value in element.attrib.items():
            if name not in _ATTRIBUTES:
                return False
            if name == "href" and not re.match(r"https?://|mailto:", value):
                return False
    return True


def test_headings_lists_tables_and_bold_are_what_they_are() -> None:
    html = page_html("# Title\n\n- one\n- **two**\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    body = lxml.html.fragment_fromstring(html, create_parent="body")
    assert body.findtext(".//h1") == "Title"
    assert [item.text_content().strip() for item in body.iter("li")] == ["one", "two"]
    assert body.findtext(".//strong") == "two"
    assert [cell.text for cell in body.iter("td")] == ["1", "2"]


def test_html_tables_keep_their_merged_cells() -> None:
    html = page_html('<table><tr><td colspan="2" style="x">wide</td></tr><tr><td>a</td><td>b</td></tr></table>')
    cell = lxml.html.fragment_fromstring(html, create_parent="body").find(".//td")
    assert dict(cell.attrib) == {"colspan": "2"}


@pytest.mark.parametrize("source", ["$x^2$", "\\(x^2\\)", "$$x^2$$", "\\[x^2\\]", "| f |\n|---|\n| \\(x^2\\) |"])
def test_formulas_become_mathml(source: str) -> None:
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in page_html(source)


def test_bars_and_stars_in_a_formula_are_not_markdown() -> None:
    html = page_html("| f |\n|---|\n| \\(a|b * c * d\\) |")
    assert "<em>" not in html
    assert html.count("<td>") == 1


HALF = ["\\(x^\\)", "$\\begin{pmatrix}$", "\\[" + "{" * 500 + "\\]", "$\\sqrt" + "\\frac" * 900 + "$"]


@pytest.mark.parametrize("source", HALF)
def test_half_a_formula_is_shown_as_it_was_written(source: str) -> None:
    html = page_html(source)
    assert "<code>" in html
    assert "<math" not in html


def test_money_is_no_formula() -> None:
    assert "<math" not in page_html("It costs $5 and $6.")


def test_blocks_name_their_boxes_and_figures_have_no_source() -> None:
    boxes = [("title", "# Annual report"), ("image", ""), ("text", "Growth was \\(x^2\\)")]
    body = lxml.html.fragment_fromstring(page_html("".join(MARKDOWN), boxes), create_parent="body")
    assert [section.get("data-boxes") for section in body.iter("section")] == ["0", "1", "2"]
    assert dict(body.find(".//img").attrib) == {"data-figure": "0", "alt": "figure 1"}


def test_answers_that_are_places_only_show_their_labels() -> None:
    body = lxml.html.fragment_fromstring(page_html("", [("Total", ""), ("14.25", "")]), create_parent="body")
    assert [section.text_content().strip() for section in body.iter("section")] == ["Total", "14.25"]


def test_a_hostile_page_leaves_its_words_only() -> None:
    html = page_html(HOSTILE)
    assert _is_harmless(html)
    assert "bold" in html
    words = "[link](javascript:window.broken=1)"  # no link for Markdown, so they stand there as they are
    assert "broken" not in html.replace(words, "")


_BITS = st.sampled_from(
    [
        *["<script>", "</script>", "<style>", "<math>", "<mtext>", "<mglyph>", "<table>", "<td>", "<!--", "-->", "'>"],
        *["<![CDATA[", "]]>", "<noscript>", "<title>", "<textarea>", "<template>", "<select>", "</p>", "<a href='"],
        *["\\(", "\\)", "$", "$$", "\\[", "\\]", "[x](", ")", "`", "*", "|", "# ", "```\n", "\n", "\x00", "\u2028"],
        *["<svg onload=x>", "<img src=x onerror=x>", "<annotation-xml encoding='text/html'>", "javascript:x", "x y"],
        *["data:text/html,x", "&#xe000;0&#xe001;"],
    ]
)


@given(st.lists(_BITS, max_size=25).map("".join))
def test_no_mixture_of_markup_gets_anything_through(source: str) -> None:
    assert _is_harmless(page_html(source))


@given(st.lists(_BITS, max_size=20).map("".join))
def test_cleaning_twice_changes_nothing_more(source: str) -> None:
    once = clean(source)
    assert clean(once) == once


@pytest.mark.parametrize("bit", ["<table>", "[", "$", "\\(", "> ", "- ", "*a_ ", "`", "|a", "<a><b>", "$x$ ", "\\[x"])
def test_the_longest_text_of_one_kind_is_rendered(bit: str) -> None:
    page_html(bit * (MOST_CHARACTERS // len(bit)))


def test_a_longer_text_is_refused_by_its_length() -> None:
    with pytest.raises(InvalidInput, match=r"60,001 characters; 60,000"):
        page_html("x" * (MOST_CHARACTERS + 1))


def test_a_page_of_blocks_is_its_text_whose_sections_name_their_boxes() -> None:
    text = "## A title\n\none\n\n<!-- image [1, 2, 3, 4] -->\n\n$$ x $$\n\n<!-- image [5, 6, 7, 8] -->\n\n- last"
    boxes = [("header", "A head"), ("paragraph_title", "A title"), ("text", "one"), ("image", ""),
             ("display_formula", "x"), ("chart", ""), ("header", "one"), ("text", "last")]  # fmt: skip
    markup = page_html(text, boxes)
    assert [found[1] for found in re.finditer(r'data-boxes="([^"]*)"', markup)] == ["1", "2", "3", "4", "5", "7"]
    assert re.findall(r'data-figure="(\d)"', markup) == ["0", "1"]
    assert "<h2>A title</h2>" in markup
    assert "A head" not in markup
    assert markup.count("one") == 1
    assert "image [" not in page_html(text)
