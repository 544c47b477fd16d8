"""A table that goes on on the next page: when it is one, and what of it is written where."""

from __future__ import annotations

import pytest

from models.blocks import Block
from models.layout.join_tables import join_tables

HEAD = "<tr><td>Name</td><td>Sum</td></tr>"


def table(*rows: str, width: int = 500) -> Block:
    return Block("table", f"<table>{''.join(rows)}</table>", (100, 100, 100 + width, 300), "table")


def row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def block(label: str, text: str = "words") -> Block:
    return Block("text", text, (100, 0, 600, 50), label)


def texts(*pages: list[Block]) -> list[list[str]]:
    return [[one.text for one in page] for page in join_tables(pages)]


def test_rows_go_on_and_the_repeated_header_is_left_out() -> None:
    first, second = table(HEAD, row("a", "1")), table(HEAD.replace("Sum", " Ｓum "), row("b", "2"))
    assert texts([first], [second]) == [[f"<table>{HEAD}{row('a', '1')}{row('b', '2')}</table>"], [""]]


def test_a_table_goes_on_over_many_pages() -> None:
    pages = [[table(HEAD, row("a", "1"))], [table(row("b", "2"))], [table(row("c", "3")), block("text")]]
    whole = f"<table>{HEAD}{row('a', '1')}{row('b', '2')}{row('c', '3')}</table>"
    assert texts(*pages) == [[whole], [""], ["", "words"]]


@pytest.mark.parametrize("between", ["footer", "number", "footnote", "vision_footnote", "seal"])
def test_what_belongs_to_the_edge_of_a_page_may_stand_between(between: str) -> None:
    pages = [table(row("a", "1")), block(between)], [block("header"), table(row("b", "2"))]
    assert texts(*map(list, pages))[0][0] == f"<table>{row('a', '1')}{row('b', '2')}</table>"


def test_a_word_that_says_so_may_stand_before_the_rest() -> None:
    pages = [table(row("a", "1"))], [block("text", "Table 1 (continued)"), table(row("b", "2"))]
    assert texts(*map(list, pages))[1] == ["Table 1 (continued)", ""]
    pages = [table(row("a", "1"))], [block("text", "表1 续"), table(row("b", "2"))]
    assert texts(*map(list, pages))[1] == ["表1 续", ""]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([table(row("a", "1")), block("text")], [table(row("b", "2"))]),
        ([table(row("a", "1"))], [block("text"), table(row("b", "2"))]),
        ([table(row("a", "1"))], [table(row("b", "2"), width=400)]),
        ([table(row("a", "1"))], [table(row("b", "2", "3"))]),
        ([table(row("a", "1"))], [block("text")]),
        ([block("text")], [table(row("b", "2"))]),
        ([Block("table", "| a |", (100, 0, 600, 9), "table")], [table(row("b"))]),
    ],
)
def test_what_is_no_continuation_stays_as_it_is(first: list[Block], second: list[Block]) -> None:
    assert join_tables([first, second]) == [first, second]


def test_merged_cells_count_as_the_columns_that_they_cover() -> None:
    wide = '<tr><td colspan="2">Total</td></tr>'
    assert texts([table(row("a", "1"), wide)], [table(row("b", "2"))])[1] == [""]
