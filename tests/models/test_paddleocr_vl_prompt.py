"""PaddleOCR-VL's prompts by the checkpoint's own template, and the positions of their tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.chat_template import PromptRules, chat_prompt
from models.family import PreparedImage
from models.model_errors import InvalidInput, ManifestError
from models.patches import token_positions
from tests.conftest import SHARED

pytest.importorskip("ml_dtypes")  # of the export extra: the generator of checkpoints
from tools.paddle_checkpoints import IMAGE, PLACEHOLDER, SPECIAL, V1_0, V1_5, Revision, small_tokenizer

TOKENIZER = small_tokenizer()


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


def rules(template: str = V1_0.chat_template) -> PromptRules:
    return PromptRules(
        chat_template=template, placeholder=PLACEHOLDER,
        special_tokens={"cls_token": "<|begin_of_sentence|>", "eos_token": "</s>"},
        control_tokens=tuple(SPECIAL),
    )  # fmt: skip


def written(prompt: str, image_tokens: list[int], template: str = V1_0.chat_template) -> str:
    """The prompt's tokens as text, a run of image tokens as {count}."""
    ids = chat_prompt(prompt, image_tokens, rules(template), IMAGE, encode)
    text = TOKENIZER.decode(ids, skip_special_tokens=False)
    for count in sorted(image_tokens, reverse=True):
        text = text.replace(PLACEHOLDER * count, f"{{{count}}}", 1)
    return text


HEAD = "<|begin_of_sentence|>User: "


@pytest.mark.parametrize(("revision", "end"), [(V1_0, "Assistant: "), (V1_5, "Assistant:\n")])
def test_the_prompt_is_the_published_one_of_each_revision(revision: Revision, end: str) -> None:
    expected = HEAD + "<|IMAGE_START|>{7}<|IMAGE_END|>OCR:\n" + end
    assert written("<image>OCR:", [7], revision.chat_template) == expected


def test_the_generators_template_is_the_published_one() -> None:
    path = SHARED / "checkpoints" / "paddleocr-vl" / "chat_template.jinja"
    if not path.is_file():
        pytest.skip(f"the published template is not at {path}")
    for prompt, images in [("<image>OCR:", [3]), ("a question", []), ("<image>a<image>b", [2, 4])]:
        assert written(prompt, images) == written(prompt, images, path.read_text())


@pytest.mark.parametrize("prompt", ["OCR:", "<image>OCR:", "<image>\nOCR:", "OCR:\n<image>", " <image> OCR: "])
def test_the_image_stands_in_front_wherever_its_slot_was(prompt) -> None:
    assert written(prompt, [3]) == HEAD + "<|IMAGE_START|>{3}<|IMAGE_END|>OCR:\nAssistant: "


def test_two_images_keep_their_order_and_their_sizes() -> None:
    expected = HEAD + "<|IMAGE_START|>{5}<|IMAGE_END|><|IMAGE_START|>{2}<|IMAGE_END|>Which\nis larger?\nAssistant: "
    assert written("Which<image>\n<image>is larger?", [5, 2]) == expected


def test_a_prompt_without_images_is_a_plain_question() -> None:
    assert written("What is OCR?", []) == HEAD + "What is OCR?\nAssistant: "


@pytest.mark.parametrize(("prompt", "images"), [("<image>a<image>", 1), ("<image>", 2), ("<image>", 0)])
def test_slots_and_images_must_match_in_number(prompt, images) -> None:
    with pytest.raises(InvalidInput, match="slots for"):
        chat_prompt(prompt, [3] * images, rules(), IMAGE, encode)


def test_a_placeholder_in_the_text_is_refused() -> None:
    with pytest.raises(InvalidInput, match="stands for images"):
        chat_prompt(f"<image>what is {PLACEHOLDER}", [3], rules(), IMAGE, encode)


@pytest.mark.parametrize("token", ["<|IMAGE_START|>", "<|IMAGE_END|>", "</s>", "<|begin_of_sentence|>"])
def test_a_control_token_in_the_text_is_refused(token) -> None:
    with pytest.raises(InvalidInput, match="control token of the model") as caught:
        chat_prompt(f"<image>what is {token}?", [3], rules(), IMAGE, encode)
    assert token in str(caught.value)


def test_the_rules_of_an_older_export_still_load() -> None:
    old = PromptRules.model_validate({"chat_template": V1_0.chat_template, "placeholder": PLACEHOLDER})
    assert chat_prompt("<image>a </s> b", [3], old, IMAGE, encode)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for", "is none"),
        ("{{ messages.missing.thing }}", "fails"),
        ("{{ 1 / 0 }}", "fails"),
        ("no image at all", "0 placeholders"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails"),
        ("{{ messages.append(1) }}", "fails"),
    ],
)
def test_a_template_that_is_wrong_or_hostile_is_an_error_and_nothing_more(template, message) -> None:
    with pytest.raises(ManifestError, match=message):
        chat_prompt("<image>OCR:", [3], rules(template), IMAGE, encode)


def test_a_tokenizer_that_does_not_know_the_placeholder_is_noticed() -> None:
    with pytest.raises(ManifestError, match="one token"):
        chat_prompt("<image>OCR:", [3], rules(), IMAGE, lambda text: [5] * len(text))


def image(rows: int, columns: int) -> PreparedImage:
    return PreparedImage([], rows * columns, lambda outputs: np.zeros(0), (rows, columns))


def test_positions_follow_the_image_and_the_text_goes_on_behind_it() -> None:
    ids = [1, 9, *[IMAGE] * 6, 9, 9]
    positions = token_positions(ids, IMAGE, [image(2, 3)])
    assert positions.axes.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    assert positions.next == 7


def test_positions_without_images_count_the_tokens() -> None:
    positions = token_positions([4, 5, 6], IMAGE, [])
    assert positions.axes.tolist() == [[0, 1, 2]] * 3
    assert positions.next == 3


@pytest.mark.parametrize("grids", [[], [(1, 1)], [(26, 37)], [(2, 50), (31, 3)], [(5, 5), (1, 9), (9, 1)]])
def test_positions_equal_transformers(grids) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("transformers.models.paddleocr_vl.modeling_paddleocr_vl")
    configuration = pytest.importorskip("transformers.models.paddleocr_vl.configuration_paddleocr_vl")
    ids = chat_prompt("Read", [r * c for r, c in grids], rules(), IMAGE, encode)
    ours = token_positions(ids, IMAGE, [image(*grid) for grid in grids])
    if not grids:
        assert ours.next == len(ids)
        return
    model = library.PaddleOCRVLModel.__new__(library.PaddleOCRVLModel)
    torch.nn.Module.__init__(model)
    model.config = configuration.PaddleOCRVLConfig()
    tokens = torch.tensor([ids])
    patches = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids])
    theirs, delta = model.get_rope_index(tokens, (tokens == IMAGE).int(), image_grid_thw=patches)
    assert ours.axes.tolist() == theirs[:, 0].tolist()
    assert ours.next == len(ids) + int(delta[0, 0])


def test_the_rules_survive_the_manifest() -> None:
    kept = json.loads(rules().model_dump_json())
    assert PromptRules.model_validate(kept) == rules()
