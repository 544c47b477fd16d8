"""LightOnOCR's answers: dollars, pictures, and the blocks that LightOnOCR-3 marks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.blocks import Block, scaled
from models.lighton_ocr.output import PLACES, TASKS, marked_blocks, output_filter

MARKED = """\
![header](100,20,900,40) Annual report
![title](100,60,900,100) The great report
![text](100,120,480,900) A paragraph
on two lines that goes
![text+](520,120,900,300) on in the next column, for \\$5.
![image](520,320,900,500) a chart of profits
![caption](520,510,900,530) Figure 1
![section](520,540,900,560) ## Results
![formula](520,570,900,600) $$x^2$$
![table](520,610,900,800) <table>
<tr><td>1</td></tr>
</table>
![page_number](480,970,520,990) 7"""


def run(text: str, step: int | None = None, prompt: str = TASKS["boxes"], **options) -> str:
    output = output_filter(prompt, **options)
    pieces = [text] if step is None else [text[i : i + step] for i in range(0, len(text), step)]
    return "".join([*(output.push(piece) for piece in pieces), output.finish()])


@pytest.mark.parametrize("step", [None, 1, 7])
def test_marked_blocks_become_markdown(step) -> None:
    assert run(MARKED, step, scale=(0.5, 1.0)) == (
        "Annual report\n\n# The great report\n\n"
        "A paragraph\non two lines that goes on in the next column, for \\$5.\n\n"
        "<!-- image [1040, 320, 1800, 500] -->\n\nFigure 1\n\n## Results\n\n$$\nx^2\n$$\n\n"
        "<table>\n<tr><td>1</td></tr>\n</table>\n\n7"
    )


def test_headers_and_footers_can_be_left_out() -> None:
    text = run(MARKED, settings={"page_headers": False})
    assert text.startswith("# The great report\n\n")
    assert text.endswith("</table>")


def test_blocks_have_places_on_the_page() -> None:
    blocks = scaled(marked_blocks(MARKED, *PLACES), PLACES, (2000, 1000))
    kinds = ["header", "title", "text", "figure", "caption", "title", "formula", "table", "page_number"]
    assert [block.kind for block in blocks] == kinds
    assert blocks[1] == Block("title", "The great report", (200, 60, 1800, 100), "title", level=1)
    assert blocks[2].text == "A paragraph\non two lines that goes on in the next column, for \\$5."
    assert blocks[3] == Block("figure", "a chart of profits", (1040, 320, 1800, 500), "image")
    assert (blocks[5].text, blocks[5].level, blocks[6].text) == ("Results", 2, "x^2")


def test_a_block_is_written_when_the_next_one_begins() -> None:
    output = output_filter(TASKS["boxes"])
    begun, rest = MARKED.split("![title]")
    assert output.push(begun) == ""
    assert output.push(f"![title]{rest[:40]}\n") == "Annual report"


def test_plain_markdown_streams_through_and_names_no_blocks() -> None:
    text = "# A page\n\nwith *words*, 5 < 6!\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    output = output_filter(TASKS["markdown"])
    assert output.push("with *words*, 5") == "with *words*, 5"
    assert run(text, 1) == run(text) == text
    assert marked_blocks(text, *PLACES) == ()


@pytest.mark.parametrize(
    ("written", "repaired"),
    [
        ("so \\$x\\$ is", "so $x$ is"), ("\\$\\frac{1}{2}\\$ and \\$b\\$", "$\\frac{1}{2}$ and $b$"),
        ("\\$2x + 1 = 0\\$", "$2x + 1 = 0$"),
        ("from \\$5 to \\$10", "from \\$5 to \\$10"), ("\\$5, or 6 US\\$", "\\$5, or 6 US\\$"),
        ("\\$20-\\$30", "\\$20-\\$30"),
        ("\\$ x \\$", "\\$ x \\$"), ("one \\$x\n and \\$y", "one \\$x\n and \\$y"), ("$x$ for 5 $", "$x$ for 5 $"),
    ],
)  # fmt: skip
def test_formulas_get_their_dollars_back_and_prices_keep_theirs(written, repaired) -> None:
    assert run(written, prompt=TASKS["markdown"]) == run(written, 1, TASKS["markdown"]) == repaired


def test_a_picture_whose_place_is_told_is_cut_out_of_the_page() -> None:
    text = "Before\n\n![image](image_1.png) 100,200,500,400\n\n![image](image_2.png)\n\n![a logo](https://x.org/y.png)"
    for step in (None, 1, 5):
        assert run(text, step, TASKS["markdown"], scale=(0.5, 2.0)) == (
            "Before\n\n<!-- image [200, 100, 1000, 200] -->\n\n<!-- image -->\n\n![a logo](https://x.org/y.png)"
        )


SIGNS = st.sampled_from(
    ["!", "[", "![", "![text](1,2,3,4)", "![text+](1,2,30,40) ", "![image](image_1.png)", " 1,2,3,4", "\n", "\\", "\\$",
     "$", "x", " ", "word", "![title](", "10,20,30,40)", "5"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(SIGNS, max_size=30).map("".join), st.integers(1, 9))
def test_the_streamed_text_is_the_whole_text_however_it_is_cut(text, step) -> None:
    assert run(text, step) == run(text)
