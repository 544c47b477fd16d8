"""What families make of a model's text: the same whatever way it was cut, and nothing lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalog import CATALOG
from models.deepseek_ocr.family import DeepseekOcr
from models.family import IMAGE_SLOT, OutputFilter, task_prompt
from models.filters import FormulaDelimiters
from models.model_errors import InvalidInput
from models.otsl import OtslCell, OtslTables
from models.paddleocr_vl.output import TASKS, output_filter
from models.registry import default_task, tasks_of
from models.repetition import RepeatCut, without_repetition

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

    class Watched(OtslCell):
        @property
        def kind(self) -> str:  # type: ignore[override]
            nonlocal looks
            looks += 1
            return self._kind

        @kind.setter
        def kind(self, value: str) -> None:
            self._kind = value

    monkeypatch.setattr("models.otsl.OtslCell", Watched)
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


def naive_cut(text: str, least: int, least_in_tables: int, longest: int) -> str:
    """The rule of the stream, worked out from the whole text."""
    broken = text[len(text.rstrip("\ufffd")) :]
    body = text[: len(text) - len(broken)]
    has_token = any(token in body for token in ("<ecel>", "<nl>", "<fcel>", "<lcel>", "<ucel>", "<xcel>"))
    if len(body) < (least_in_tables if has_token else least):
        return text
    surplus = 0
    for period in range(1, longest + 1):
        size = period
        while size < len(body) and body[-size - 1] == body[-size - 1 + period]:
            size += 1
        units, one_line = size // period, "\n" not in body.strip()
        endless = (
            (units >= 50 and size >= 500)
            or (not one_line and units >= 10 and size >= 0.8 * len(body))
            or (one_line and units >= 10 and size == len(body))
            or (one_line and len(body) > 100 and period >= 8 and units >= 5 and size > len(body) / 2)
        )
        if endless and len(body) > period:
            surplus = max(surplus, size - period - max(period, 32))
    return body[: len(body) - surplus] if surplus else text


UNITS = st.text("ab \n", min_size=1, max_size=12) | st.sampled_from(["<ecel>", "<nl>", "<ecel>a<nl>", "a line\n"])
RUNS = st.tuples(UNITS, st.integers(1, 120)).map(lambda run: (run[0] * run[1])[:700])
ENDS = st.sampled_from(["", "\ufffd", "\ufffd\ufffd", "x"])


@given(pieces=st.lists(RUNS | st.text("abc\n", max_size=20), max_size=4), end=ENDS)
@settings(max_examples=120, deadline=None)
def test_looking_at_ordinary_text_now_and_then_changes_nothing(pieces: list[str], end: str) -> None:
    text = "".join(pieces) + end
    assert run(RepeatCut(50, 300, longest=40), *pieces, end) == naive_cut(text, 50, 300, 40)
    assert run(RepeatCut(50, 300, longest=40), *text) == naive_cut(text, 50, 300, 40)


def test_fifty_and_five_thousand_are_lengths_of_the_text() -> None:
    unit = "round and "
    assert ocr(unit * 4) == (unit * 4).strip()
    assert ocr(unit * 30) == (unit * 2 + unit * 10)[: 10 + 32].strip()
    assert ocr("=" * 49) == "=" * 49
    assert ocr("=" * 50) == "=" * 33
    row = "<ecel>" * 3 + "<nl>"
    assert len(row * 200) < 5000 < len(row * 250)
    assert ocr(row * 200).count("<tr>") == 200
    assert ocr(row * 250).count("<tr>") < 5
    assert ocr("<ecel>" * 200 + "<nl>").count("<td>") == 200
    assert ocr("<fcel>" + "." * 70 + "<fcel>1<nl>") == f"<table><tr><td>{'.' * 70}</td><td>1</td></tr></table>"


def test_a_long_unit_is_cut_too() -> None:
    unit = " ".join(f"word{number}" for number in range(80)) + ". "
    assert 500 < len(unit) < 2048
    assert ocr(unit * 6) == (unit * 2).strip()
    assert without_repetition(unit * 6) == unit.strip()  # the first, whose blank before it is not there
    assert without_repetition("First this: " + unit * 6 + "end") == "First this: " + unit * 6 + "end"


@pytest.mark.parametrize("broken", ["", "\ufffd", "\ufffd\ufffd"])
def test_a_cut_inside_a_unit_or_inside_a_character_hides_no_repetition(broken: str) -> None:
    unit = "das Schöne \u4e2d\u6587,"
    assert ocr(unit * 9 + unit[:7] + broken) == ocr(unit * 9 + unit[:7]).rstrip("\ufffd")
    assert len(ocr(unit * 9 + unit[:7] + broken)) < 3.5 * len(unit)
    assert without_repetition("x" + unit * 9 + broken) == "x"


def test_leaders_between_two_words_are_no_endless_repetition() -> None:
    line = f"Chapter 1 {'.' * 70} 17\n"
    assert ocr(line * 3) == (line * 3).strip()
    assert ocr(f"{line}Chapter 2 {'.' * 70}") == f"{line}Chapter 2 {'.' * 70}"
    assert ocr(f"Name: {'_' * 60}") == f"Name: {'_' * 60}"


def test_an_endless_end_of_a_long_page_is_cut() -> None:
    page = "\n".join(f"Line {number} says {number * number}." for number in range(60))
    assert ocr(page + "\n" + "so on " * 100) == page + "\n" + ("so on " * 100)[: 6 + 32].strip()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_what_is_held_of_a_repetition_is_bounded(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("models.repetition.MOST_HELD", 200)

    def cut(text: str) -> str:
        return run(RepeatCut(), *(text[at : at + size] for at in range(0, len(text), size)))

    assert cut("ab" * 116 + "x") == "ab" * 116 + "x"
    assert cut("ab" * 900 + "x") == "ab" * 17 + "x"
    assert cut("ab" * 900 + "ax" + "=" * 70 + "y") == "ab" * 17 + "ax" + "=" * 70 + "y"


def vendors_rule(content: str, least: int) -> str:
    """PaddleX's rule, written down from its description, without any shortcut."""
    stripped = content.strip()
    if len(content) < least or not stripped:
        return content
    if "\n" not in stripped and len(stripped) > 100:
        for size in range(len(stripped) // 5, 7, -1):
            unit, count = stripped[-size:], 0
            while stripped[: len(stripped) - count * size].endswith(unit):
                count += 1
            if count >= 5:
                if size * count > len(stripped) / 2:
                    return stripped[: len(stripped) - size * count]
                break
    if "\n" not in stripped and len(stripped) > 10:
        for size in range(1, len(stripped) // 2 + 1):
            if stripped[:size] * (len(stripped) // size) == stripped and len(stripped) // size >= 10:
                return stripped[:size]
    lines = [line.strip() for line in content.split("\n") if line.strip()]
    most = max(lines, key=lines.count)
    return most if lines.count(most) >= 10 and lines.count(most) / len(lines) >= 0.8 else content


@given(pieces=st.lists(RUNS | st.text("abc \n", max_size=20), max_size=4), least=st.sampled_from([50, 200]))
@settings(max_examples=150, deadline=None)
def test_a_whole_answer_loses_what_paddlex_takes_out(pieces: list[str], least: int) -> None:
    text = "".join(pieces)
    assert without_repetition(text, least) == vendors_rule(text, least)


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
    assert tasks_of("hunyuan-ocr") == {}
