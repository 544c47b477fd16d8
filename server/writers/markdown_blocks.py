"""Blocks of a page from its Markdown alone: kinds and texts in order, without boxes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.token import Token

from models.blocks import Block
from models.grounding import to_markdown

from .tables import TABLE

# Display formulas. None contains another's beginning, so the time is linear.
_FORMULA = re.compile(
    r"^[ \t]*(?:\\\[((?:(?!\\[\[\]]).)+)\\\]|\$\$((?:(?!\$\$).)+)\$\$)[ \t]*$", re.DOTALL | re.MULTILINE
)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FIGURE_COMMENT = re.compile(r"<!-- image\b[^>]*-->")


def markdown_blocks(text: str) -> tuple[Block, ...]:
    """The blocks of an answer, which may hold references; tables keep their form."""
    return tuple(_split(to_markdown(text, lambda number: f"{number}")))


def _split(markdown: str) -> Iterator[Block]:
    """Split off tables and formulas first: blank lines, bars and stars inside are no Markdown."""
    done = 0
    for found in TABLE.finditer(markdown):
        yield from _with_formulas(markdown[done : found.start()])
        yield Block("table", found[0].strip())
        done = found.end()
    yield from _with_formulas(markdown[done:])


def _with_formulas(markdown: str) -> Iterator[Block]:
    done = 0
    for found in _FORMULA.finditer(markdown):
        yield from _parsed(markdown[done : found.start()])
        yield Block("formula", (found[1] or found[2]).strip())
        done = found.end()
    yield from _parsed(markdown[done:])


def _parsed(markdown: str) -> Iterator[Block]:
    lines = markdown.split("\n")
    tokens = _parser().parse(markdown)
    for index, token in enumerate(tokens):
        if token.level or token.nesting < 0 or token.map is None:
            continue
        source = "\n".join(lines[token.map[0] : token.map[1]]).strip()
        yield from _block(token, tokens[index + 1 : index + 2], source)


def _block(token: Token, inner: list[Token], source: str) -> Iterator[Block]:
    match token.type:
        case "heading_open":
            yield Block("title", inner[0].content, level=int(token.tag[1:]))
        case "bullet_list_open" | "ordered_list_open":
            yield Block("list", source)
        case "fence" | "code_block":
            yield Block("code", token.content.rstrip("\n"))
        case "paragraph_open" if all(child.type in ("image", "softbreak") for child in inner[0].children or ()):
            for child in inner[0].children or ():
                if child.type == "image":
                    yield Block("figure", child.content)
        case "html_block":
            for _ in _FIGURE_COMMENT.findall(source):
                yield Block("figure", "")
            if words := _COMMENT.sub("", source).strip():
                yield Block("text", words)
        case "hr":
            return
        case _:
            yield Block("text", source)


@lru_cache(1)
def _parser() -> MarkdownIt:
    # A line such as [1]: Smith is the page's text, not a link definition of Markdown's, which would vanish.
    return MarkdownIt("commonmark", {"html": True, "maxNesting": 40}).disable("reference")
