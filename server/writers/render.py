"""Renders a model's text as clean HTML: Markdown, HTML tables, formulas as MathML.

A model's text is a stranger's: a page can hold ``<script>``, which a model copies faithfully. So all HTML passes
``nh3`` last, and only names on the lists below come through. Needs the extra ``formats``.
"""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import latex2mathml.converter
import nh3
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from models.grounding import FIGURE_LABEL, PICTURE, pictures_in, to_markdown, with_pictures
from models.model_errors import InvalidInput

from .plain import printable

MOST_CHARACTERS = 60_000  # characters of one page's text: more than any model writes
MOST_FORMULA = 4_000  # characters of one formula
DEEPEST = 60  # depth of braces in a formula, as its converter recurses

_TEXT_TAGS = {
    "a", "b", "blockquote", "br", "caption", "code", "del", "div", "em", "figure", "h1", "h2", "h3", "h4", "h5", "h6",
    "hr", "i", "img", "li", "ol", "p", "pre", "s", "section", "span", "strong", "sub", "sup", "table", "tbody", "td",
    "tfoot", "th", "thead", "tr", "u", "ul",
}  # fmt: skip
_MATH_TAGS = {
    "math", "mfrac", "mi", "mmultiscripts", "mn", "mo", "mover", "mpadded", "mphantom", "mprescripts", "mroot", "mrow",
    "ms", "mspace", "msqrt", "mstyle", "msub", "msubsup", "msup", "mtable", "mtd", "mtext", "mtr", "munder",
    "munderover",
}  # fmt: skip
_ATTRIBUTES = {
    "a": {"href", "title"},
    "code": {"class"},
    "img": {"alt", "data-figure"},  # no src: a page's text must not make a browser fetch anything
    "math": {"display"},
    "mo": {"fence", "stretchy", "separator", "form"},
    "mi": {"mathvariant"},
    "mstyle": {"displaystyle", "scriptlevel"},
    "mtable": {"columnalign"},
    "ol": {"start"},
    "section": {"data-boxes"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan"},
}
_MARKS = re.compile(r"[\s#$\\\[\]-]*")  # Markdown's marks in front of the words of a block
FIGURE = "ocr-figure:"  # beginning of a figure's link, until the picture replaces it

# \( \) and \[ \]. No formula contains another's beginning, so the time is linear. While Markdown is parsed, a mark of
# two private characters replaces each formula, whose bars and stars are no Markdown.
_BRACKETED = re.compile(r"\\\(((?:(?!\\[()])[^\n])+)\\\)|\\\[((?:(?!\\[\[\]]).)+)\\\]", re.DOTALL)
_OPEN, _CLOSE = "\ue000", "\ue001"
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


@dataclass(frozen=True)
class TextBlock:
    """A piece of the text with one or several boxes on the page.

    boxes : their numbers in the order of the answer's boxes; none for text without a box.
    """

    label: str
    text: str
    boxes: tuple[int, ...] = ()


def blocks_of(text: str, boxes: Sequence[tuple[str, str]]) -> Iterator[TextBlock]:
    """A page's text cut where its boxes begin.

    boxes : (label, text) of each, in the answer's order. Neighbours that share both are one reference with several
    boxes.
    """
    if not boxes:
        yield TextBlock("", text)
        return
    if "<|" not in text and any(words.strip() for _, words in boxes):
        yield from _paragraphs(text, [words for _, words in boxes])
        return
    before, found, _ = text.partition("<|ref|>")
    if found and before.strip():
        yield TextBlock("", before)
    at = 0
    while at < len(boxes):
        label, words = boxes[at]
        end = at + 1
        while end < len(boxes) and boxes[end] == boxes[at] and not words:
            end += 1
        yield TextBlock(label, words, tuple(range(at, end)))
        at = end


def _paragraphs(text: str, words: Sequence[str]) -> Iterator[TextBlock]:
    """A text without references, cut where the words of its boxes end; pictures are at their comments.

    Words that are not in the text, such as a header's, have no block.
    """
    at = 0
    for number, said in enumerate(words):
        found = re.compile(re.escape(said.strip()) if said.strip() else PICTURE).search(text, at)
        if found is None or not _MARKS.fullmatch(text[at : found.start()]):
            continue
        end = text.find("\n\n", found.end())
        end = len(text) if end < 0 else end
        yield TextBlock("", text[at:end], (number,))
        at = end
    if text[at:].strip():
        yield TextBlock("", text[at:])


def page_html(text: str, boxes: Sequence[tuple[str, str]] = (), longest: int | None = MOST_CHARACTERS) -> str:
    """One page's text as clean HTML; its blocks are sections that name their boxes (``data-boxes="3 4"``).

    Figures are ``<img data-figure="0">``, numbered in the order in which the page has them, without a source.

    Raises
    ------
    InvalidInput
        for a text of more than ``longest`` characters (None: no limit).
    """
    if longest is not None and len(text) > longest:
        raise InvalidInput(f"the text has {len(text):,} characters; {longest:,} are the most that is rendered")
    figures = 0
    bare = not any(words.strip() for _, words in boxes)  # tasks whose answers are boxes and labels
    pieces = []
    for block in blocks_of(text, boxes):
        if block.label.strip() == FIGURE_LABEL:
            links = "".join(f"![figure {n + 1}]({FIGURE}{n})\n\n" for n in range(figures, figures + len(block.boxes)))
            figures += len(block.boxes)
            source = links + block.text
        else:
            places = pictures_in(block.text) if boxes else []
            shown = {place: f"{FIGURE}{n}" for n, place in enumerate(places, figures)}
            figures += len(places)
            source = block.label if bare and block.boxes else to_markdown(with_pictures(block.text, shown))
        inner = _markdown_html(source)
        pieces.append(f'<section data-boxes="{" ".join(map(str, block.boxes))}">{inner}</section>')
    return clean("\n".join(pieces))


def clean(markup: str) -> str:
    """Nothing but the tags and attributes above, links to http, https and mailto, in well-formed HTML.

    Control characters are left out.
    """
    return _cleaner().clean(printable(markup))


def _markdown_html(source: str) -> str:
    formulas: dict[str, str] = {}

    def mark(found: re.Match[str]) -> str:
        number = str(len(formulas))
        formulas[number] = formula(found[1] or found[2], found[2] is not None)
        return f"{_OPEN}{number}{_CLOSE}"

    marked = _BRACKETED.sub(mark, source.replace(_OPEN, "").replace(_CLOSE, ""))
    parser = _parser()
    with _parsing:  # its plugins keep no state between texts, but are not documented as thread-safe
        rendered: str = parser.render(marked)
    # A text can spell a mark as entities; such a mark has an unknown number, or shows one of the text's own formulas.
    return _MARK.sub(lambda found: formulas.get(found[1], ""), rendered)


_parsing = threading.Lock()


@lru_cache(1)
def _parser() -> MarkdownIt:
    """CommonMark with tables, and formulas between dollar signs; HTML passes, and is cleaned afterwards."""
    parser = MarkdownIt("commonmark", {"html": True, "breaks": True, "maxNesting": 40})
    parser.enable(["table", "strikethrough"])
    parser.use(dollarmath_plugin, allow_labels=False, allow_digits=False, double_inline=True, renderer=_dollar_math)
    for name, display in (("math_inline", False), ("math_inline_double", True), ("math_block", True)):
        parser.add_render_rule(name, _math_rule(display))
    parser.add_render_rule("image", _image)
    return parser


def _math_rule(display: bool) -> Callable[..., str]:
    def rule(renderer: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
        return formula(tokens[index].content, display)

    return rule


def _dollar_math(content: str, options: dict[str, Any]) -> str:
    return formula(content, bool(options.get("display_mode")))


def _image(renderer: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    address = str(token.attrGet("src") or "")
    words = html.escape(token.content)
    if not address.startswith(FIGURE):
        return words  # a picture from elsewhere is not fetched
    return f'<img data-figure="{html.escape(address.removeprefix(FIGURE))}" alt="{words}">'


def formula(latex: str, display: bool) -> str:
    """LaTeX as MathML; as code where its converter does not know it."""
    source = latex.strip()
    try:
        return mathml(source, display)
    except ValueError:
        return f"<code>{html.escape(source)}</code>"


def mathml(latex: str, display: bool) -> str:
    """LaTeX as a ``<math>`` element.

    Raises
    ------
    ValueError
        for a formula that is too long, too deep, or not understood.
    """
    if len(latex) > MOST_FORMULA or _depth(latex) > DEEPEST:
        raise ValueError("the formula is too long or too deep")
    try:
        converted: str = latex2mathml.converter.convert(latex, display="block" if display else "inline")
    except Exception as error:  # malformed formulas raise its own errors, IndexError, RecursionError ...
        raise ValueError(f"the formula is not understood: {type(error).__name__}") from error
    return converted


def _depth(latex: str) -> int:
    deepest = depth = 0
    for letter in latex:
        depth += (letter in "{[(") - (letter in "}])")
        deepest = max(deepest, depth)
    return max(deepest, latex.count("\\frac"), latex.count("\\sqrt"))


def _without_odd_links(tag: str, attribute: str, value: str) -> str | None:
    """Drop links that lead into this server or are no addresses."""
    return None if attribute == "href" and not re.match(r"(?:https?://|mailto:)", value, re.IGNORECASE) else value


@lru_cache(1)
def _cleaner() -> nh3.Cleaner:
    return nh3.Cleaner(
        tags=_TEXT_TAGS | _MATH_TAGS,
        attributes=_ATTRIBUTES,
        clean_content_tags={"script", "style", "title", "textarea", "xmp", "iframe", "noembed", "noframes"},
        attribute_filter=_without_odd_links,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        strip_comments=True,
    )
