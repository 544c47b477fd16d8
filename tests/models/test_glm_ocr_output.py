"""What becomes of GLM-OCR's answers, piece by piece and as a whole."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.asking import question
from models.catalog import CATALOG
from models.extraction import extraction
from models.glm_ocr.output import TASKS, output_filter
from runtime.text import LoopDetector


def run(text: str, task: str = "text", step: int | None = None) -> str:
    output = output_filter(TASKS[task].replace("{text}", '{"a": ""}'))
    pieces = [text] if step is None else [text[i : i + step] for i in range(0, len(text), step)]
    return "".join([*(output.push(piece) for piece in pieces), output.finish()])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1. Scope ........ 7", "1. Scope ... 7"), ("name: ________", "name: ___"), ("a ····· b", "a ··· b"),
        ("wait... what", "wait... what"), ("so $ x^2 $ is", "so $x^2$ is"),
        ("$ a = b $ and $ c_1 $", "$a = b$ and $c_1$"),
        ("from $ 5 to $ 10", "from $ 5 to $ 10"), ("$x$ and $$ y = 1 $$", "$x$ and $$ y = 1 $$"),
        ("\\$ a = 1 \\$", "\\$ a = 1 \\$"), ("# A page\n\n```python\nx\n```", "# A page\n\n```python\nx\n```"),
    ],
)  # fmt: skip
def test_text_is_tidied_as_the_authors_package_does(written: str, read: str) -> None:
    assert run(written) == read


@pytest.mark.parametrize(
    "written",
    ["x^2", "$$x^2$$", "$$\nx^2\n$$", "\\[ x^2 \\]", "\\( x^2 \\)", "$x^2$", "```latex\nx^2\n```", "```\n$$x^2$$\n```"],
)
def test_a_formula_comes_without_what_stands_around_it(written: str) -> None:
    assert run(written, "formula") == "x^2"


def test_several_formulas_keep_their_delimiters() -> None:
    for written in ("$a$ and $b$", "\\[a\\] or \\[b\\]", "$$a$$\n$$b$$"):
        assert run(written, "formula") == written


def test_a_table_and_fields_come_without_their_fence() -> None:
    table = "<table><tr><td>1</td></tr></table>"
    assert run(f"```html\n{table}\n```", "table") == table
    assert run('```json\n{"total": "`5`"}\n```', "extract") == '{"total": "`5`"}'
    assert run("`a`\n``b``", "table") == "`a`\n``b``"


def test_a_table_streams() -> None:
    output = output_filter(TASKS["table"])
    assert output.push("<table><tr><td>1</td>") == "<table><tr><td>1</td>"


SIGNS = st.sampled_from(
    [
        "$",
        "$ ",
        " $",
        "$$",
        "x^2",
        "a",
        " ",
        "\n",
        "`",
        "```",
        "json",
        ".",
        "..",
        "_",
        "·",
        "\\",
        "\\[",
        "\\]",
        "5",
        "y" * 40,
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(SIGNS, max_size=30).map("".join), st.integers(1, 9), st.sampled_from(list(TASKS)))
def test_the_streamed_text_is_the_whole_text_however_it_is_cut(text: str, step: int, task: str) -> None:
    assert run(text, task, step) == run(text, task)


def test_fields_are_asked_for_by_the_template_of_a_schema() -> None:
    schema = '{"type": "object", "properties": {"total": {"type": "string"}}}'
    asked = extraction(CATALOG["glm-ocr"], None, "", schema, 1).prompt
    assert asked == TASKS["extract"].replace("{text}", '{\n  "total": ""\n}')


def test_words_of_ones_own_are_not_asked_and_a_known_prompt_is() -> None:
    entry = CATALOG["glm-ocr"]
    assert question(entry, None, "What is this?", 1).ignored
    assert question(entry, None, "Figure Recognition:", 1).prompt == "<image>\nFigure Recognition:"
    extract = 'Please: {"total": ""}'
    assert question(entry, None, extract, 1).ignored
    assert not question(entry, None, '请按下列JSON格式输出图中信息:\n{"total": ""}', 1).ignored


# Loops that users of GLM-OCR and dots.ocr report, with how often the unit came until they stopped the program.
LOOPS = {
    "zai-org/GLM-OCR 220": "FAR TO ONLY COME\nTHIS FAR\nYOU DIDN'T COME THIS\n",
    "ollama 16892": "Happy birthday to you!🎂\n",
    # a block of a table's rows
    "mlx-vlm 1214": "".join(
        f"<tr><td>{name}</td><td>{number}</td><td>0.0{number} mg</td></tr>"
        for number, name in enumerate(["Benzofuran", "Benzophenone", "Benzoyl chloride", "Auramine"] * 6, 1)
    ),
    "dots.ocr 245": "<tr><td></td><td></td><td></td><td></td></tr>",
}


def tokens_until_stopped(text: str, unit: str, repeats: int) -> int | None:
    """After how many tokens (here: words and tags) of a repeated unit the guard ends the answer; None: not at all."""
    numbers: dict[str, int] = {}
    guard = LoopDetector(decode=lambda tokens: "".join(list(numbers)[token] for token in tokens))

    def stops(word: str) -> bool:
        return guard.add(numbers.setdefault(word, len(numbers)))

    split = re.compile(r"<[^>]*>|\s|[^<\s]+").findall
    assert not any(stops(word) for word in split(text))
    return next((n for n, word in enumerate(split(unit) * repeats) if stops(word)), None)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_guard_ends_the_loops_that_users_report(loop: str) -> None:
    text = "A page that begins as it should, with a heading and some words.\n"
    assert (tokens_until_stopped(text, LOOPS[loop], 1_000) or 0) > 100


def test_the_guard_leaves_a_blank_form_alone() -> None:
    assert tokens_until_stopped("A form\n<table>", LOOPS["dots.ocr 245"], 40) is None
