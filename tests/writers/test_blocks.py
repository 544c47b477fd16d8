"""Blocks of pages whose reader named none: by their places, or by their Markdown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.blocks import Block
from models.grounding import Box
from server.writers import page_blocks
from server.writers.markdown_blocks import markdown_blocks

HTML_TABLE = "<table><tr><td>a\n\nb</td></tr></table>"
PIPES = "| a | b |\n| --- | --- |\n| 1 | 2 |"


def named(text: str) -> list[Any]:
    return [(block.kind, block.text) for block in markdown_blocks(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# One\n\ntwo\nthree", [("title", "One"), ("text", "two\nthree")]),
        ("Words\n\n- a\n- b\n\n1. c", [("text", "Words"), ("list", "- a\n- b"), ("list", "1. c")]),
        (f"Before\n\n{HTML_TABLE}\n\nbehind", [("text", "Before"), ("table", HTML_TABLE), ("text", "behind")]),
        (f"Table 1\n{HTML_TABLE}", [("text", "Table 1"), ("table", HTML_TABLE)]),
        (f"{PIPES}\n\nbehind", [("table", PIPES), ("text", "behind")]),
        ("\\[\nx = 1\n\n= y\n\\]", [("formula", "x = 1\n\n= y")]),
        ("a\n$$x^2$$\nb \\(y\\)", [("text", "a"), ("formula", "x^2"), ("text", "b \\(y\\)")]),
        ("```py\nx = 1\n```\n\n> said", [("code", "x = 1"), ("text", "> said")]),
        ("![A cat](images/a.jpg)\n\nwords", [("figure", "A cat"), ("text", "words")]),
        ("<!-- a note -->\n\nwords", [("text", "words")]),
        ("***\n\nwords", [("text", "words")]),
        ("It costs $5 and $6.", [("text", "It costs $5 and $6.")]),
        ("", []),
    ],
)
def test_markdown_is_told_apart_by_its_kinds(text: str, expected: list[Any]) -> None:
    assert named(text) == expected


def test_titles_have_their_level() -> None:
    assert [block.level for block in markdown_blocks("# a\n\n### b\n\nc\n---")] == [1, 3, 2]


def test_blocks_of_the_reader_come_first_then_places_then_markdown() -> None:
    box, own = Box("title", "# A", (0, 0, 9, 9)), Block("seal", "red")
    assert page_blocks("x", [box], [own]) == (own,)
    assert page_blocks("x", [box], ()) == (Block("title", "# A", (0, 0, 9, 9), "title"),)
    assert page_blocks("x", [], ()) == (Block("text", "x"),)


@given(st.text("ab: #-*|<>!$\\[]()`\n12", max_size=120))
def test_no_word_of_a_page_is_lost(text: str) -> None:
    found = "".join(block.text for block in markdown_blocks(text))
    assert [letter for letter in text if letter in "ab"] == [letter for letter in found if letter in "ab"]
