"""Results whose tables go on on the next page."""

from __future__ import annotations

from dataclasses import replace

from models.blocks import Block, boxes_of
from server.writers import PageResult
from server.writers.joined import with_joined_tables

UPPER, LOWER = "<table><tr><td>a</td></tr></table>", "<table><tr><td>b</td></tr></table>"


def page(number: int, *blocks: Block) -> PageResult:
    text = "\n\n".join(block.text for block in blocks)
    return PageResult(number, "done", width=600, height=800, text=text, boxes=boxes_of(blocks), blocks=blocks)


def table(text: str) -> Block:
    return Block("table", text, (0, 0, 500, 100), "table")


def test_text_boxes_and_blocks_have_the_whole_table_where_it_begins() -> None:
    words = Block("text", "words", (0, 200, 500, 300), "text")
    first, second = with_joined_tables([page(1, words, table(UPPER)), page(2, table(LOWER), words)])
    whole = "<table><tr><td>a</td></tr><tr><td>b</td></tr></table>"
    assert (first.text, second.text) == (f"words\n\n{whole}", "words")
    assert [box.text for box in first.boxes] == [block.text for block in first.blocks] == ["words", whole]
    assert [box.text for box in second.boxes] == ["", "words"]


def test_nothing_goes_on_across_a_page_that_failed_and_other_pages_are_as_they_were() -> None:
    failed = PageResult(2, "failed", "out of luck")
    pages = [page(1, table(UPPER)), failed, page(3, table(LOWER))]
    assert with_joined_tables(pages) == pages
    assert with_joined_tables([replace(pages[0], blocks=())]) == [replace(pages[0], blocks=())]
