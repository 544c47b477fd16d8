"""The plain text of blocks, without Markdown's marks, for text layers and word lists."""

from __future__ import annotations

import re
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.token import Token

from models.blocks import Block

_AS_IT_IS = ("formula", "code", "algorithm")
_TAG = re.compile(
    r"<(?:!--|/?(?:a|b|i|u|s|p|em|strong|su[bp]|del|ins|code|span|div|center|font|small|big|mark|img|hr|li|ul|ol|d[ltd]"
    r"|t(?:able|r|h|d|body|head|foot)|caption|figure|blockquote|pre|h[1-6])\b)",
    re.IGNORECASE,
)
# Characters that XML forbids, and those that text layers cannot hold.
_NEVER = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def plain_lines(block: Block) -> list[str]:
    """The non-empty lines of a block that is no table; whole paragraphs where the text has no line breaks."""
    text = printable(block.text)
    lines = (text if block.kind in _AS_IT_IS else plain(text)).split("\n")
    return [words for line in lines if (words := " ".join(printable(line).split()))]


def plain(markdown: str) -> str:
    """Markdown without marks, line by line."""
    pieces: list[str] = []
    for token in _parser().parse(markdown):
        if token.type == "inline":
            pieces += [_inline(token), "\n"]
        elif token.type in ("fence", "code_block"):
            pieces.append(token.content)
        elif token.type == "html_block":
            pieces.append(_without_tags(token.content))
    return "".join(pieces)


def plain_cell(text: str) -> str:
    """The text of a table's cell in one line. A leading minus or number begins no list there."""
    pieces = [_inline(token) for token in _parser().parseInline(printable(text))]
    return " ".join(printable(" ".join(pieces)).split())


def printable(text: str) -> str:
    """The text without characters that no file takes."""
    return _NEVER.sub("", text)


def _inline(token: Token) -> str:
    pieces = []
    for child in token.children or ():
        match child.type:
            case "text" | "code_inline" | "text_special":
                pieces.append(child.content)
            case "softbreak" | "hardbreak":
                pieces.append("\n")
            case "image":
                pieces.append(child.content)
            case "html_inline" if child.content[:3].lower() == "<br":
                pieces.append("\n")
            case "html_inline" if not _TAG.match(child.content):
                pieces.append(child.content)  # <name> in a page's text is no markup
    return "".join(pieces)


def _without_tags(markup: str) -> str:
    return re.sub(r"<!--.*?-->|</?[a-zA-Z][^<>]*>", "", markup, flags=re.DOTALL)


@lru_cache(1)
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": True, "maxNesting": 40}).disable(["reference", "escape"])
