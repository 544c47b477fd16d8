"""Blocks: labels of every model end in one vocabulary, and nothing that was read is lost on the way."""

import pytest

from models.blocks import KINDS, Block, blocks_of, kind_of
from models.grounding import parse_boxes


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_its_own_label(kind: str) -> None:
    assert kind_of(kind) == kind


@pytest.mark.parametrize(
    ("label", "kind"),
    [("Section-header", "title"), ("sub_title", "title"), (" Picture ", "figure"), ("number", "page_number"),
     ("Page-footer", "footer"), ("List-item", "list"), ("something new", "other")],
)  # fmt: skip
def test_labels_of_models_have_a_kind_however_they_are_spelt(label: str, kind: str) -> None:
    assert kind_of(label) == kind


def test_a_grounded_answer_becomes_blocks() -> None:
    answer = (
        "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 99]]<|/det|>\n# Heading\n\n"
        "<|ref|>image<|/ref|><|det|>[[0, 200, 500, 600]]<|/det|>\n"
    )
    assert blocks_of(parse_boxes(answer, 999, 999)) == (
        Block("title", "# Heading", (0, 0, 999, 99), "title"),
        Block("figure", "", (0, 200, 500, 600), "image"),
    )


def test_words_that_were_read_into_labels_are_text_whatever_they_say() -> None:
    answer = "<|ref|>Table<|/ref|><|det|>[[0, 0, 10, 10]]<|/det|><|ref|>two<|/ref|><|det|>[[20, 0, 30, 10]]<|/det|>"
    assert blocks_of(parse_boxes(answer, 999, 999)) == (
        Block("text", "Table", (0, 0, 10, 10)),
        Block("text", "two", (20, 0, 30, 10)),
    )
