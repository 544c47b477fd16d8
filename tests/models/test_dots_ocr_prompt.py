"""dots.ocr is asked in its authors' words, in the form in which they serve the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jinja2 import Environment

from models.chat_template import PromptRules
from models.dots_ocr.prompts import PLACEHOLDER, SERVING_TEMPLATE, TASKS, prompt_ids, sized_prompt
from models.family import IMAGE_SLOT, TEXT_SLOT, task_prompt
from models.model_errors import InvalidInput

GOLDEN = Path(__file__).parent / "golden"
PUBLISHED = json.loads((GOLDEN / "dots_prompts.json").read_text())
RULES = PromptRules(chat_template=SERVING_TEMPLATE, placeholder=PLACEHOLDER, control_tokens=("<|user|>", "<|img|>"))


def written(prompt: str, images: list[int]) -> str:
    """The text that is encoded: a letter is its number, a placeholder 0."""
    texts: list[str] = []

    def encode(text: str) -> list[int]:
        texts.append(text)
        return [0] * text.count(PLACEHOLDER)

    prompt_ids(prompt, images, RULES, 0, encode)
    (text,) = texts
    return text


def served(prompt: str, placeholders: list[int]) -> str:
    """As vLLM renders the checkpoint's own template, images in front of the text."""
    template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(
        (GOLDEN / "dots_chat_template.jinja").read_text()
    )
    images = "".join(f"<|img|>{PLACEHOLDER * count}<|endofimg|>" for count in placeholders)
    return template.render(messages=[{"role": "user", "content": images + prompt}])


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("layout", "prompt_layout_all_en"), ("text", "prompt_ocr"), ("layout-only", "prompt_layout_only_en"),
        ("web", "prompt_web_parsing"), ("scene", "prompt_scene_spotting"),
    ],
)  # fmt: skip
def test_tasks_are_asked_letter_by_letter_in_the_serving_form(task: str, name: str) -> None:
    assert written(TASKS[task], [3]) == served(PUBLISHED[name], [3])
    assert written(PUBLISHED[name], [3]) == served(PUBLISHED[name], [3])  # as a client sends it, without a slot
    assert written(task_prompt(TASKS, task, images=2), [3, 4]) == served(PUBLISHED[name], [3, 4])


def test_other_words_are_asked_as_they_are() -> None:
    assert written(f"{IMAGE_SLOT}\n Read it. ", [2]) == served("Read it.", [2])
    with pytest.raises(InvalidInput, match="control token"):
        written("<|user|>", [1])


def test_the_region_is_told_in_pixels_that_the_model_sees() -> None:
    prompt = task_prompt(TASKS, "region", "[100, 200, 301, 400]")
    sized = sized_prompt(prompt, (1654, 2339), (1148, 1624))
    assert sized is not None
    expected = [int(100 / (1654 / 1148)), int(200 / (2339 / 1624)), int(301 / (1654 / 1148)), int(400 / (2339 / 1624))]
    assert written(sized, [1]) == served(f"{PUBLISHED['prompt_grounding_ocr']}{expected}", [1])
    assert TASKS["region"].replace(TEXT_SLOT, "") == IMAGE_SLOT + PUBLISHED["prompt_grounding_ocr"]
    assert sized_prompt(task_prompt(TASKS, "region", " 1,2, 3 ,4 "), (10, 10), (20, 20)) == sized_prompt(
        task_prompt(TASKS, "region", "[1, 2, 3, 4]"), (10, 10), (20, 20)
    )


@pytest.mark.parametrize(
    "box", ["", "the table", "[1, 2, 3]", "[5, 5, 5, 9]", "[0, 0, 11, 9]", "[-1, 0, 3, 4]", "[3, 2, 1, 4]"]
)
def test_a_region_that_is_no_box_on_the_page_is_refused(box: str) -> None:
    with pytest.raises(InvalidInput, match="in pixels of the page, which has 10 x 20"):
        sized_prompt(TASKS["region"].replace(TEXT_SLOT, box), (10, 20), (10, 20))


def test_a_drawing_is_asked_for_in_the_pages_size() -> None:
    sized = sized_prompt(TASKS["svg"], (640, 480), (644, 476))
    assert sized is not None
    published = PUBLISHED["prompt_image_to_svg"].replace("{width}", "640").replace("{height}", "480")
    assert written(sized, [1]) == served(published, [1])


def test_other_prompts_say_nothing_of_sizes() -> None:
    assert sized_prompt(TASKS["layout"], (10, 10), (10, 10)) is None
