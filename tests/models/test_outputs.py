"""What families make of a model's text: the same whatever way it was cut, and nothing lost on the way."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalog import CATALOG
from models.deepseek_ocr.family import DeepseekOcr
from models.errors import InvalidInput
from models.family import IMAGE_SLOT, OutputFilter, task_prompt
from models.filters import FormulaDelimiters
from models.otsl import OtslTables, _Cell
from models.paddleocr_vl.output import TASKS, output_filter
from models.registry import default_task, tasks_of
from models.repetition import MOST_REPEATS, MOST_REPEATS_IN_TABLES, RepeatCut

PIECES = st.sampled_from(
    ["<fcel>", "<ecel>", "<lcel>", "<ucel>", "<xcel>", "<nl>", "<", "<fc", "el>", "nl>", "\\", "\\(", "\\]", "\\\\",
     "a", "ab", "$", " ", "\n", "&", "\U0001f600", "x" * 60, "xy" * 55]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=30).map("".join)


def run(output: OutputFilter, *pieces: str) -> str:
    return "".join([*(output.push(piece) for piece in pieces), output.finish()])


def ocr(text: str) -> str:
    return run(output_filter(), text)


def table(text: str) -> str:
    return run(OtslTables(), text)


@given(text=TEXTS, cuts=st.lists(st.integers(0, 400), max_size=12))
def test_the_streamed_text_is_the_whole_text_however_it_is_cut(text: str, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(places)]
    whole = run(output_filter(), text)
    assert run(output_filter(), *pieces) == whole
    assert run(output_filter(), *text) == whole


@given(st.text(alphabet=st.characters(exclude_characters="<\\"), max_size=49))
def test_plain_text_comes_back_as_it_was(text: str) -> None:
    assert ocr(text) == text.strip()


@given(TEXTS)
def test_deepseek_ocr_keeps_the_text(text: str) -> None:
    assert run(DeepseekOcr.output(""), text) == text


# OTSL tables.


@pytest.mark.parametrize(
    ("otsl", "html"),
    [
        ("<fcel>a<fcel>b<nl><fcel>c<ecel><nl>", "<tr><td>a</td><td>b</td></tr><tr><td>c</td><td></td></tr>"),
        ("<fcel>a<lcel><nl><fcel>b<fcel>c<nl>", '<tr><td colspan="2">a</td></tr><tr><td>b</td><td>c</td></tr>'),
        ("<fcel>a<fcel>b<nl><ucel><fcel>c<nl>", '<tr><td rowspan="2">a</td><td>b</td></tr><tr><td>c</td></tr>'),
        (
            "<fcel>a<lcel><fcel>b<nl><ucel><xcel><fcel>c<nl>",
            '<tr><td rowspan="2" colspan="2">a</td><td>b</td></tr><tr><td>c</td></tr>',
        ),
        ("<fcel>1 < 2 & <b>x</b><nl>", "<tr><td>1 &lt; 2 &amp; &lt;b&gt;x&lt;/b&gt;</td></tr>"),
        ("<fcel> a \n<nl>\n<fcel>b<nl>\n", "<tr><td>a</td></tr><tr><td>b</td></tr>"),
        ("<fcel>cut off", "<tr><td>cut off</td></tr>"),
        # Continuations of nothing, and cells that would overlap.
        ("<lcel><ucel><xcel><nl>", "<tr><td></td><td></td><td></td></tr>"),
        (
            "<fcel>a<lcel><nl><ucel><fcel>b<nl>",
            '<tr><td colspan="2">a</td></tr><tr><td></td><td>b</td></tr>',
        ),
        ("<fcel>a<lcel>b<nl>", "<tr><td>a</td><td>b</td></tr>"),
    ],
)
def test_cell_tokens_become_html(otsl: str, html: str) -> None:
    assert table(otsl) == f"<table>{html}</table>"


def test_cell_tokens_survive_detokenizing() -> None:
    from runtime.text import TextStream
    from tools.paddle_checkpoints import small_tokenizer

    tokenizer = small_tokenizer()
    tokens = tokenizer.encode("<fcel>a<lcel><nl><ecel><fcel>b<nl>", add_special_tokens=False).ids
    assert {101308, 101309, 101311, 101313} <= set(tokens)  # one token each, at their published ids
    stream, output = TextStream(tokenizer), output_filter()
    read = "".join(output.push(stream.add(token)) for token in tokens) + run(output, stream.finish())
    assert read == '<table><tr><td colspan="2">a</td></tr><tr><td></td><td>b</td></tr></table>'


def test_text_around_a_table_stays_where_it_was() -> None:
    assert table("Before\n<fcel>a<nl>\nBetween\n<fcel>b<nl> after") == (
        "Before\n<table><tr><td>a</td></tr></table>\nBetween\n<table><tr><td>b</td></tr></table> after"
    )
    assert table("no table: a < b <x> <fcel") == "no table: a < b <x> <fcel"
    assert table("no<nl>table") == "no\ntable"
    assert table("<fcel>a<nl><nl><fcel>b<nl>") == "<table><tr><td>a</td></tr><tr><td>b</td></tr></table>"


@pytest.mark.parametrize(
    "row",
    [
        lambda k: "<fcel>a" + "<lcel>" * k + "<nl>",
        lambda k: "<ucel>" + "<xcel>" * k + "<nl>",
        lambda k: "<xcel>" * k + "<fcel>b<nl>",
        lambda k: "<ecel>" * k + "<ucel><nl>",
    ],
    ids=["wide", "tall", "broken", "empty"],
)
def test_work_on_a_table_grows_as_its_cells_do(monkeypatch: pytest.MonkeyPatch, row: Callable[[int], str]) -> None:
    """Counted in looks at cells, not in seconds: whatever spans what, a few for each."""
    looks = 0

    class Watched(_Cell):
        @property
        def kind(self) -> str:  # type: ignore[override]
            nonlocal looks
            looks += 1
            return self._kind

        @kind.setter
        def kind(self, value: str) -> None:
            self._kind = value

    monkeypatch.setattr("models.otsl._Cell", Watched)
    for k in (10, 40, 80):
        looks = 0
        otsl = "<fcel>a" + "<lcel>" * k + "<nl>" + row(k) * k
        table(otsl)
        assert 0 < looks <= 6 * otsl.count("<")


def test_rows_of_a_table_are_written_as_soon_as_they_are_certain() -> None:
    output = OtslTables()
    assert output.push("<fcel>a<fcel>b<nl>") == ""  # the next row may go on with both
    assert output.push("<ucel><fcel>c<nl>") == ""
    assert output.push("<fcel>d<fcel>e<nl>").endswith("<tr><td>c</td></tr>")


class Grid(HTMLParser):
    """Lays out a table as a browser does: which columns of each row its cells take."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[set[int]] = []
        self.texts: list[str] = []
        self._row = -1
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        spans = {name: int(value or 1) for name, value in attrs}
        if tag == "tr":
            self._row += 1
        elif tag == "td":
            self._add(spans.get("rowspan", 1), spans.get("colspan", 1))
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        self.texts[-1] += data

    def _add(self, height: int, width: int) -> None:
        while len(self.rows) < self._row + height:
            self.rows.append(set())
        column = next(column for column in range(10_000) if column not in self.rows[self._row])
        for row in self.rows[self._row : self._row + height]:
            cells = set(range(column, column + width))
            assert not cells & row, "two cells overlap"
            row |= cells


CELLS = st.sampled_from(["<fcel>", "<ecel>", "<lcel>", "<ucel>", "<xcel>"])


@given(
    st.integers(1, 5).flatmap(
        lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=6)
    )
)
def test_any_table_is_a_grid_without_gaps_or_overlaps(rows: list[list[str]]) -> None:
    numbered = [
        [f"{cell}{r}.{c}" if cell == "<fcel>" else cell for c, cell in enumerate(row)] for r, row in enumerate(rows)
    ]
    grid = Grid(table("".join("".join(row) + "<nl>" for row in numbered)))
    assert grid.rows == [set(range(len(row))) for row in rows]
    assert [text for text in grid.texts if text] == [
        cell.removeprefix("<fcel>") for row in numbered for cell in row if cell.startswith("<fcel>")
    ]


# Formula delimiters.


@pytest.mark.parametrize(
    ("latex", "markdown"),
    [
        (r"so \(x\) is", "so  $ x $  is"),
        (r"\[x = \frac{1}{2}\]", r" $$ x = \frac{1}{2} $$ "),
        (r"\begin{array} a \\[2pt] b \\(c) \end{array}", r"\begin{array} a \\[2pt] b \\(c) \end{array}"),
        ("at the end \\", "at the end \\"),
    ],
)
def test_formula_delimiters_become_dollars(latex: str, markdown: str) -> None:
    assert run(FormulaDelimiters(), latex) == markdown
    assert ocr(latex) == markdown.strip()


# Repetitions.


@given(
    unit=st.text("abc", min_size=1, max_size=6).filter(lambda unit: re.fullmatch(r"(.+?)\1+", unit) is None),
    count=st.integers(1, 40),
    before=st.text("xyz", max_size=5),
    after=st.text("xyz", max_size=5),
    whole=st.booleans(),
)
def test_repetitions_beyond_the_limit_are_dropped(unit: str, count: int, before: str, after: str, whole: bool) -> None:
    """Where the text ends with them; in front of other text they stay."""
    part = "" if whole else unit[: len(unit) // 2]
    text = before + unit * count + part + after
    assert run(RepeatCut(10), text) == (text if after else before + unit * min(count, 10) + part)


@given(st.text("ab", max_size=60))
def test_the_last_piece_is_not_left_more_often_than_the_limit_and_nothing_else_is_lost(text: str) -> None:
    cut = run(RepeatCut(4, longest=1), text)
    assert cut == re.sub(r"(.)\1{3}\1+$", lambda run: run[1] * 4, text)


def naive_cut(text: str, most: int, most_in_tables: int, longest: int) -> str:
    """The same rule, worked out from the whole text."""
    surplus = 0
    for period in range(1, min(longest, len(text)) + 1):
        size = period
        while size < len(text) and text[-size - 1] == text[-size - 1 + period]:
            size += 1
        in_table = any(token in text[-period:] * 8 for token in ("<ecel>", "<nl>", "<fcel>"))
        repeats = size // period - (most_in_tables if in_table else most)
        surplus = max(surplus, repeats * period)
    return text[: len(text) - surplus]


UNITS = st.text("ab ", min_size=1, max_size=7) | st.sampled_from(["<ecel>", "<nl>", "<ecel>a<nl>", "<fcel>aa<fcel>"])
RUNS = st.tuples(UNITS, st.integers(1, 90)).map(lambda run: (run[0] * run[1])[:300])


@given(pieces=st.lists(RUNS | st.text("abc", max_size=20), max_size=5))
@settings(max_examples=60, deadline=None)
def test_looking_at_ordinary_text_now_and_then_changes_nothing(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert run(RepeatCut(40, 45, longest=14), *pieces) == naive_cut(text, 40, 45, 14)
    assert run(RepeatCut(6, 9, longest=14), text) == naive_cut(text, 6, 9, 14)


def test_the_limit_of_tables_is_for_pieces_with_a_cell_token_whatever_was_asked() -> None:
    assert ocr("=" * 6000) == "=" * MOST_REPEATS
    assert ocr("<ecel>" * 200 + "<nl>").count("<td>") == 200
    row = "<ecel>" * 3 + "<nl>"
    assert ocr(row * 70).count("<tr>") == 70
    assert run(RepeatCut(), row * (MOST_REPEATS_IN_TABLES + 9)) == row * MOST_REPEATS_IN_TABLES
    assert ocr("<fcel>" + "." * 70 + "<fcel>1<nl>") == f"<table><tr><td>{'.' * 70}</td><td>1</td></tr></table>"


def test_leaders_between_two_words_are_no_endless_repetition() -> None:
    line = f"Chapter 1 {'.' * 70} 17\n"
    assert ocr(line * 3) == (line * 3).strip()
    assert ocr(f"{line}Chapter 2 {'.' * 70}") == f"{line}Chapter 2 {'.' * MOST_REPEATS}"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_what_is_held_of_a_repetition_is_bounded(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("models.repetition.MOST_HELD", 200)

    def cut(text: str) -> str:
        return run(RepeatCut(), *(text[at : at + size] for at in range(0, len(text), size)))

    assert cut("ab" * 150 + "x") == "ab" * 150 + "x"
    assert cut("ab" * 151 + "x") == "ab" * MOST_REPEATS + "x"
    assert cut("ab" * 900 + "ax" + "=" * 70 + "y") == "ab" * MOST_REPEATS + "ax" + "=" * 70 + "y"
    assert cut("ab" * 900 + "a") == "ab" * MOST_REPEATS + "a"


# Tasks.


def test_tasks_have_the_published_prompts() -> None:
    deepseek = tasks_of("deepseek-ocr")
    assert list(deepseek) == ["markdown", "ocr", "free", "figure", "describe", "locate"]
    assert task_prompt(deepseek, "markdown") == "<image>\n<|grounding|>Convert the document to markdown."
    assert task_prompt(deepseek, "locate", " the total ") == "<image>\nLocate <|ref|>the total<|/ref|> in the image."
    assert task_prompt(deepseek, "free", images=2) == "<image>\n<image>\nFree OCR."
    assert {name: prompt.removeprefix(IMAGE_SLOT) for name, prompt in TASKS.items()} == {
        "ocr": "OCR:",
        "table": "Table Recognition:",
        "formula": "Formula Recognition:",
        "chart": "Chart Recognition:",
        "spotting": "Spotting:",
        "seal": "Seal Recognition:",
    }


@pytest.mark.parametrize(
    ("task", "text", "words"),
    [
        ("tables", "", "its tasks are markdown, ocr, free, figure, describe, locate"),
        ("ocr", "Free OCR.", "takes no text"),
        ("locate", " \n", "needs a text"),
        ("locate", "<image>", "leave it out"),
    ],
)
def test_tasks_that_cannot_be_are_explained(task: str, text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        task_prompt(tasks_of("deepseek-ocr"), task, text)


def test_the_default_task_is_the_entrys_or_else_the_familys() -> None:
    assert default_task(CATALOG["deepseek-ocr"]) == "markdown"
    assert default_task(CATALOG["tiny-ocr"]) == "free"
    assert tasks_of("dots-ocr") == {}
