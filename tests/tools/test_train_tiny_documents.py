"""Documents that the built-in model is trained and measured on: lines, blocks, boxes, and what is asked of them."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the export extra")
pytest.importorskip("transformers", reason="training needs the export extra")

from models.deepseek_ocr.output import TASKS  # noqa: E402
from models.family import TEXT_SLOT  # noqa: E402
from models.grounding import parse_boxes  # noqa: E402
from tools.train_tiny import documents, text  # noqa: E402
from tools.train_tiny.batches import Pages, draw_page  # noqa: E402
from tools.train_tiny.curriculum import Canvas, Stage  # noqa: E402
from tools.train_tiny.documents import Figure, Heading, Paragraph, Source, Table  # noqa: E402
from tools.train_tiny.fonts import PILLOW, TRAIN_FAMILIES, faces_of  # noqa: E402
from tools.train_tiny.layout import Faces, Typesetter, faces_for, render_document  # noqa: E402
from tools.train_tiny.model import TinySpec  # noqa: E402
from tools.train_tiny.render import Page, PageStyle, turned  # noqa: E402
from tools.train_tiny.tasks import PROMPTS, question  # noqa: E402

NATURAL = ((1.0, Canvas(256, 12, (18, 24), 6, natural=True)),)


def faces() -> Faces:
    return faces_for(random.Random(0), faces_of(TRAIN_FAMILIES)["Roboto"])


def style(kind: str, **changes: object) -> PageStyle:
    return PageStyle(**{"width": 480, "height": 0, "font_size": 22, "max_lines": 9, "kind": kind, "max_words": 12,
                        "colours": False} | changes)  # fmt: skip


def drawn(kind: str, seed: int, **changes: object) -> Page:
    return render_document(random.Random(seed), style(kind, **changes), faces())


def set_blocks(*blocks: documents.Block) -> Page:
    typesetter = Typesetter(random.Random(0), style("article"), faces())
    for block in blocks:
        typesetter.set(block)
    return typesetter.page()


@pytest.mark.parametrize("kind", sorted(documents.KINDS))
def test_a_document_s_lines_are_its_text_and_every_box_holds_ink_and_stays_on_the_page(kind: str) -> None:
    for seed in range(12):
        page = drawn(kind, seed)
        assert page.text == "\n".join(line.label for line in page.lines)
        assert page.text.replace(" ", "").replace("\n", "") == page.characters
        assert len(page.centres) == len(page.characters)
        dark = np.asarray(page.image.convert("L")) < 140
        for region in (*page.lines, *page.blocks):
            left, top, right, bottom = region.box
            assert left < right
            assert top < bottom
            assert dark[max(0, int(top)) : int(bottom) + 1, max(0, int(left)) : int(right) + 1].any(), region
        for line in page.lines:
            assert line.box[0] >= 0
            assert line.box[2] <= page.image.width


def test_boxes_follow_the_tilt_of_a_worn_page() -> None:
    for seed in range(10):
        page = drawn("till", seed, wear=1.0)
        for line in page.lines:
            left, top, right, bottom = line.box
            count = len(line.label.replace(" ", ""))
            start = sum(len(other.label.replace(" ", "")) for other in page.lines[: page.lines.index(line)])
            places = page.centres[start : start + count]
            assert ((places[:, 0] > left - 2) & (places[:, 0] < right + 2)).all()
            assert ((places[:, 1] > top - 9) & (places[:, 1] < bottom + 9)).all()


def test_a_page_with_a_heading_a_table_and_a_figure_is_the_family_s_markdown() -> None:
    table = Table((("Item", "Price"), ("Ink", "4.50"), ("Paper", "")))
    words = Paragraph((("Read", False), ("this", True), ("first", True), ("please", False)))
    page = set_blocks(Heading("Prices"), words, table, Figure(0.3), Heading("Terms", 2))
    _, answer = question(random.Random(0), page, "markdown")
    bodies = re.sub(r"<\|det\|>.*?<\|/det\|>", "", answer)
    assert bodies == (
        "<|ref|>title<|/ref|>\n# Prices\n\n<|ref|>text<|/ref|>\nRead **this first** please\n\n"
        "<|ref|>table<|/ref|>\n<table><tr><td>Item</td><td>Price</td></tr><tr><td>Ink</td><td>4.50</td></tr>"
        "<tr><td>Paper</td><td></td></tr></table>\n\n<|ref|>image<|/ref|>\n\n<|ref|>sub_title<|/ref|>\n## Terms"
    )
    assert page.text == "Prices\nRead this first please\nItem Price\nInk 4.50\nPaper\nTerms"


def test_the_product_reads_the_boxes_of_an_answer_where_the_lines_stand() -> None:
    page = drawn("invoice", 3)
    _, answer = question(random.Random(0), page, "ocr")
    boxes = parse_boxes(answer, *page.image.size)
    assert [box.label for box in boxes] == [line.label for line in page.lines]
    for box, line in zip(boxes, page.lines, strict=True):
        np.testing.assert_allclose(box.box, line.box, atol=0.002 * max(page.image.size) + 0.5)


def test_a_line_that_is_to_be_located_is_named_in_the_prompt_and_in_the_answer() -> None:
    page = drawn("till", 1)
    asked, answer = question(random.Random(0), page, "locate")
    (box,) = parse_boxes(answer, *page.image.size)
    assert box.label in page.text.split("\n")
    assert asked == PROMPTS["locate"].format(box.label)


def test_the_prompts_are_the_product_s() -> None:
    for task, prompt in PROMPTS.items():
        assert prompt.replace("{}", TEXT_SLOT) == TASKS[task]


def test_a_turned_page_and_an_empty_one_have_an_empty_answer_to_every_prompt() -> None:
    page = turned(random.Random(0), drawn("till", 1))
    assert [question(random.Random(0), page, task)[1] for task in PROMPTS] == [""] * 4


def test_a_column_without_room_is_left_out_and_no_cell_is_cut() -> None:
    wide = tuple(f"Column number {index}" for index in range(9))
    page = set_blocks(Table((wide, wide)))
    header, row = page.lines
    assert header.label == row.label
    kept = header.label.split(" Column ")
    assert 1 < len(kept) < 9
    assert header.label == " ".join(wide[: len(kept)])


def test_documents_take_their_words_from_the_pool_that_they_are_told() -> None:
    for held_out in (False, True):
        pool = {*text.word_pool(held_out), *text.accented_pool(held_out)}
        source = Source(random.Random(1), held_out, ascii_only=False)
        found = [source.word() for _ in range(300)]
        assert set(found) <= pool
        assert any(not word.isascii() for word in found)
    plain = Source(random.Random(1), False, ascii_only=True)
    for kind, blocks_of in documents.KINDS.items():
        assert all(str(blocks_of(plain, 8)).isascii() for _ in range(20)), kind


def test_training_on_documents_asks_every_prompt_and_shows_turned_pages() -> None:
    stage = Stage(1, NATURAL, {"article": 1.0, "till": 1.0}, dict.fromkeys(PROMPTS, 1.0), turned=0.3)
    pages = [draw_page(random.Random(seed), NATURAL[0][1], stage, TinySpec()) for seed in range(60)]
    empty = sum(not page.text for page in pages)
    assert 8 < empty < 30
    batches = Pages((stage,), TinySpec(), 0)
    rows = [row.tolist() for step in range(12) for row in batches[step].input_ids]
    texts = [batches.tokenizer.decode(row, skip_special_tokens=False) for row in rows]
    starts = {task: prompt.partition("{}")[0].removeprefix("<image>") for task, prompt in PROMPTS.items()}
    asked = {task for task, start in starts.items() if any(start in text for text in texts)}
    assert asked == set(PROMPTS)


def test_pillow_s_own_face_serves_for_documents_without_a_bold_one() -> None:
    own = faces_for(random.Random(0), faces_of(TRAIN_FAMILIES)[PILLOW])
    assert own.bold == own.regular
    page = render_document(random.Random(2), style("article"), own)
    assert page.text.isascii()
    assert "**" not in "".join(block.markdown for block in page.blocks)
