"""dots.ocr's layout as Markdown and blocks: what was whole is kept, however an answer is cut, broken or streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.blocks import Block, scaled
from models.dots_ocr.cells import Cell, Cells
from models.dots_ocr.output import SALVAGED, displayed, layout_blocks, output_filter, undelimited
from models.dots_ocr.prompts import TASKS

LAYOUT = TASKS["layout"]
PAGE: list[dict[str, Any]] = [
    {"bbox": [100, 20, 500, 50], "category": "Page-header", "text": "Annual report"},
    {"bbox": [100, 80, 900, 120], "category": "Title", "text": "# The \"great\" report"},
    {"bbox": [100, 140, 900, 300], "category": "Text", "text": "First line\nsecond {line}, 5 < 6"},
    {"bbox": [100, 320, 900, 600], "category": "Picture"},
    {"bbox": [100, 610, 900, 630], "category": "Caption", "text": "Figure 1"},
    {"bbox": [100, 640, 900, 700], "category": "Section-header", "text": "## Results"},
    {"bbox": [100, 710, 900, 760], "category": "Formula", "text": "\\frac{a}{b} \\leq \\beta"},
    {"bbox": [100, 770, 900, 900], "category": "Table", "text": "<table><tr><td colspan=\"2\">x</td></tr></table>"},
    {"bbox": [100, 910, 900, 930], "category": "List-item", "text": "- one"},
    {"bbox": [100, 940, 900, 960], "category": "Footnote", "text": "¹ not audited"},
    {"bbox": [400, 970, 600, 990], "category": "Page-footer", "text": "7"},
]  # fmt: skip
MARKDOWN = """\
Annual report

# The "great" report

First line
second {line}, 5 < 6

<!-- image [100, 320, 900, 600] -->

Figure 1

## Results

$$
\\frac{a}{b} \\leq \\beta
$$

<table><tr><td colspan="2">x</td></tr></table>

- one

¹ not audited

7"""


def run(text: str, step: int | None = None, prompt: str = LAYOUT, **options: Any) -> str:
    output = output_filter(prompt, **options)
    pieces = [text] if step is None else [text[i : i + step] for i in range(0, len(text), step)]
    return "".join([*(output.push(piece) for piece in pieces), output.finish()])


def cells_of(text: str, step: int | None = None) -> tuple[list[Cell], bool]:
    reader = Cells()
    pieces = [text] if step is None else [text[i : i + step] for i in range(0, len(text), step)]
    found = [cell for piece in pieces for cell in reader.push(piece)] + reader.finish()
    return found, reader.salvaged


def note(cells: int) -> str:
    return f"<!-- {SALVAGED.format(cells)} -->"


@pytest.mark.parametrize("step", [None, 1, 7])
@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(PAGE), json.dumps(PAGE, indent=2, ensure_ascii=False), json.dumps({"layout": PAGE}),
        f"```json\n{json.dumps(PAGE)}\n```", f"Here is the layout:\n{json.dumps(PAGE)}",
    ],
    ids=["a list", "on lines", "an object around it", "a fence", "words before"],
)  # fmt: skip
def test_a_whole_layout_becomes_markdown_in_reading_order(answer: str, step: int | None) -> None:
    assert run(answer, step) == MARKDOWN


def test_a_cell_is_written_as_soon_as_it_is_whole() -> None:
    output, answer = output_filter(LAYOUT), json.dumps(PAGE)
    first = answer.index("}") + 1
    assert output.push(answer[:first]) == "Annual report"
    assert output.push(answer[first : answer.index("}", first)]) == ""


def test_headers_and_footers_can_be_left_out() -> None:
    text = run(json.dumps(PAGE), settings={"page_headers": False})
    assert text == MARKDOWN.removeprefix("Annual report\n\n").removesuffix("\n\n7")
    kinds = [block.kind for block in layout_blocks(json.dumps(PAGE), 1000, 1000)]
    assert (kinds[0], kinds[-1]) == ("header", "footer")  # whoever writes the page decides


def test_figures_are_told_in_pixels_of_the_page() -> None:
    assert "<!-- image [200, 640, 1800, 1200] -->" in run(json.dumps(PAGE), scale=(0.5, 0.5))


def test_blocks_have_kinds_levels_and_bare_formulas() -> None:
    blocks = layout_blocks(json.dumps(PAGE), 1000, 1000)
    assert [block.kind for block in blocks] == [
        "header", "title", "text", "figure", "caption", "title", "formula", "table", "list", "footnote", "footer",
    ]  # fmt: skip
    assert blocks[1] == Block("title", 'The "great" report', (100, 80, 900, 120), "Title", level=1)
    assert blocks[3] == Block("figure", "", (100, 320, 900, 600), "Picture")
    assert (blocks[5].text, blocks[5].level) == ("Results", 2)
    assert blocks[6].text == "\\frac{a}{b} \\leq \\beta"


def test_boxes_become_pixels_of_the_page_as_the_authors_round_them() -> None:
    """int(x / (resized / original)), and within the page."""
    blocks = layout_blocks('[{"bbox": [10, -3, 990, 1100], "category": "Text", "text": "a"}]', 980, 1064)
    assert blocks[0].box == (10, 0, 980, 1064)
    (block,) = scaled(blocks, (980, 1064), (1654, 2339))
    assert block.box == (int(10 / (980 / 1654)), 0, 1654, 2339)


@pytest.mark.parametrize("end", range(0, len(json.dumps(PAGE)) - 1, 11))
def test_the_whole_cells_of_an_answer_that_is_cut_off_are_kept(end: int) -> None:
    answer = json.dumps(PAGE)[:end]
    whole = sum(1 for cell in range(1, len(PAGE) + 1) if len(json.dumps(PAGE[:cell])) - 1 <= end)
    found, salvaged = cells_of(answer)
    assert len(found) == whole
    assert salvaged == bool(answer)
    if whole:
        assert run(answer).endswith(note(whole))
        assert len(layout_blocks(answer, 1000, 1000)) == whole


A, B = (
    '"bbox": [1, 2, 30, 40], "category": "Text", "text": "a"',
    '"bbox": [1, 50, 30, 90], "category": "Text", "text": "b"',
)
BROKEN = {
    "no brackets around": (f"{{{A}}}, {{{B}}}, ", "a b"),
    "the end of an object missing": (f"[{{{A}, {{{B}}}]", "a b"),
    "two objects in one": (f"[{{{A}, {B}}}]", "a b"),
    "the end of a box missing": (f"[{{{A.replace(']', '')}}}, {{{B}}}]", "a b"),
    "three numbers": (f"[{{{A.replace(', 40', '')}}}, {{{B}}}]", "a b"),
    "a text that never ends": (f"[{{{A[:-1]}, {{{B}}}]", "b"),
    "quotes in a text": (f'[{{{A}}}, {{{B[:-2]}x="1">"c", d"}}]', 'a x="1">"c", d'),
    "a loop": (f"[{{{A}}}, {', '.join([f'{{{B}}}'] * 40)}", "a b"),
    "latex with single backslashes": (f'[{{{A[:-2]}\\alpha \\times \\nu\\\\n"}}]', "\\alpha \\times \\nu\\n"),
    "a comment": (f"[{{{A}}}, // next\n{{{B}}}", "a b"),
}  # fmt: skip


@pytest.mark.parametrize("step", [None, 1, 5])
@pytest.mark.parametrize("what", BROKEN)
def test_what_is_whole_of_a_broken_layout_is_kept_and_the_page_says_so(what: str, step: int | None) -> None:
    answer, texts = BROKEN[what]
    *parts, last = run(answer, step).split("\n\n")
    assert " ".join(parts) == texts
    assert last == note(len(parts))


def test_an_answer_that_is_no_layout_stays_as_it_is() -> None:
    for prompt in (LAYOUT, TASKS["text"], "What is this?"):
        for text in (
            "# A page\n\nwith words",
            "[1] a reference",
            "{x}",
            "",
            "```python\n[1]\n```",
            "x" * 900,
            "[[1, 2]]",
        ):
            assert run(text, prompt=prompt) == run(text, 3, prompt=prompt) == text
            assert layout_blocks(text, 10, 10) == ()


def test_an_empty_layout_is_an_empty_page() -> None:
    for answer in ("[]", "```json\n[]\n```", "{}"):
        assert run(answer) == ""


def test_who_asks_for_places_alone_gets_the_json() -> None:
    answer = json.dumps([{"bbox": [1, 2, 3, 4], "category": "Text"}])
    assert run(answer, prompt=TASKS["layout-only"]) == answer
    assert layout_blocks(answer, 10, 10)[0].box == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("written", "latex"),
    [
        ("$$x^2$$", "x^2"), ("$$\nx^2\n$$", "x^2"), ("\\[ x^2 \\]", "x^2"), ("`x^2`", "x^2"), ("x^2", "x^2"),
        ("\\documentclass{article}\\usepackage[utf8]{inputenc}\\begin{document}x^2\\end{document}", "x^2"),
    ],
)  # fmt: skip
def test_a_formula_stands_between_dollars_of_its_own(written: str, latex: str) -> None:
    assert undelimited(written) == latex
    assert displayed(written) == f"$$\n{latex}\n$$"


def test_a_formula_with_dollars_inside_is_left_as_it_is() -> None:
    for written in ("so $x$ is", "$$a$$ and $$b$$"):
        assert displayed(written) == written


SIGNS = st.sampled_from(
    ["{", "}", "[", "]", '"', "\\", ",", ":", " ", '{"bbox": [1, 2, 3, 4]', ', "category": "Text"', ', "text": "ab',
     '"}', "n", "x", "\\n", '{ "bbox"', "```", "\\frac", "`", "json", "x" * 300]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(SIGNS, max_size=30).map("".join), st.integers(1, 9), st.sampled_from([LAYOUT, TASKS["text"]]))
def test_the_streamed_text_is_the_whole_text_however_it_is_cut(text: str, step: int, prompt: str) -> None:
    assert run(text, step, prompt) == run(text, prompt=prompt)
    assert cells_of(text, step) == cells_of(text)


@pytest.mark.parametrize(
    "sign", ["{", "[", '[{"bbox":"', '{"a":{', '"', "{}", '[{"bbox": [1, 2, 3, 4], "category": "Text"} ']
)
def test_work_on_nonsense_grows_as_its_length_does(sign: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in characters of objects that are parsed."""
    parsed = 0
    real = Cells.parsed

    def counting(self: Cells, text: str, start: int) -> list[Cell]:
        nonlocal parsed
        parsed += len(text)
        return real(self, text, start)

    monkeypatch.setattr(Cells, "parsed", counting)
    text = sign * 3000 + "}" * 3000
    cells_of(text)
    assert parsed <= 6 * len(text)


def test_half_a_character_that_json_escapes_alone_is_replaced() -> None:
    answer = r'[{"bbox": [1, 2, 30, 40], "category": "Text", "text": "a\ud800b \ud83d\ude00"}]'
    (block,) = layout_blocks(answer, 100, 100)
    assert block.text == "a\ufffdb \U0001f600"
