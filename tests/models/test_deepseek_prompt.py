"""DeepSeek-OCR's ``plain`` prompt: BOS in front, the text around each image slot encoded by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from models.deepseek_ocr.family import DeepseekOcr
from models.manifest import DecoderInfo, Graph, Manifest, SourceInfo, TokenIds
from models.model_errors import InvalidInput
from tools.checkpoints import small_tokenizer

IMAGE = 128815
GRAPH = Graph(files={"cpu": "x.onnx"}, compute={"cpu": "float32"})


@pytest.fixture(scope="module")
def family() -> DeepseekOcr:
    return DeepseekOcr(
        Manifest(
            id="deepseek-ocr", family="deepseek-ocr", dtype="f32", created_by="test", parameters=1,
            source=SourceInfo(origin="directory", name="x", fingerprint="x"), vision=GRAPH, embed=GRAPH, decoder=GRAPH,
            sizes=DecoderInfo(layers=1, hidden_size=1, kv_heads=1, head_dim=1, vocabulary=129280, max_length=8192),
            tokens=TokenIds(bos=0, eos=(1,), image=IMAGE),
            image={"patch_size": 16, "downsample": 4, "grid": 64, "clip_grid": 16}, files={},
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def encode(real_tokenizer: Path) -> Callable[[str], list[int]]:
    tokenizer = Tokenizer.from_file(str(real_tokenizer))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def letters(text: str) -> list[int]:
    """An encoding in which every character is its own token, so that a test can be read."""
    return [1000 + ord(character) for character in text]


def test_the_golden_encoding_of_the_real_tokenizer(family, encode) -> None:
    assert family.prompt_ids("<image>\nFree OCR.", [1], encode) == [0, IMAGE, 201, 21431, 126041, 16]


def test_a_slot_expands_to_as_many_placeholders_as_the_image_has_features(family, encode) -> None:
    expanded = family.prompt_ids("<image>\nFree OCR.", [273], encode)
    assert expanded == [0, *[IMAGE] * 273, 201, 21431, 126041, 16]


def test_grounding_markers_are_single_tokens_of_the_real_tokenizer(family, encode) -> None:
    ids = family.prompt_ids("<image>\n<|grounding|>Convert the document to markdown.", [1], encode)
    assert ids[:4] == [0, IMAGE, 201, 128820]
    ids = family.prompt_ids("<image>\nLocate <|ref|>total<|/ref|> in the image.", [1], encode)
    assert [i for i in ids if i in (128816, 128817)] == [128816, 128817]


def test_the_placeholder_is_the_token_that_the_tokenizer_has_for_a_slot(encode) -> None:
    assert encode("<image>") == [IMAGE]


@pytest.mark.parametrize("prompt", ["<image>\nFree OCR.  ", "<image>\nFree OCR.\n\n", "  \n<image>\nFree OCR.\t"])
def test_blanks_around_the_message_vanish(family, encode, prompt) -> None:
    assert family.prompt_ids(prompt, [1], encode) == [0, IMAGE, 201, 21431, 126041, 16]


def test_a_slot_at_the_end_loses_the_blanks_after_it(family) -> None:
    assert family.prompt_ids("read <image>\n ", [2], letters) == [0, *letters("read "), IMAGE, IMAGE]


def test_several_slots_take_their_images_in_order_with_the_text_between_encoded_by_itself(family) -> None:
    encoded: list[str] = []

    def encode(text: str) -> list[int]:
        encoded.append(text)
        return letters(text)

    ids = family.prompt_ids("a<image>b c<image><image> d", [1, 3, 2], encode)
    assert ids == [0, *letters("a"), IMAGE, *letters("b c"), *[IMAGE] * 3, *[IMAGE] * 2, *letters(" d")]
    assert encoded == ["a", "b c", "", " d"]


def test_text_around_a_slot_is_encoded_without_special_tokens() -> None:
    tokenizer = small_tokenizer()
    ids = tokenizer.encode("x<td>", add_special_tokens=False).ids
    assert tokenizer.token_to_id("<td>") == ids[-1]
    assert len(ids) == 2


def test_a_prompt_without_images_is_only_text(family) -> None:
    assert family.prompt_ids(" hello ", [], letters) == [0, *letters("hello")]
    assert family.prompt_ids("", [], letters) == [0]


@pytest.mark.parametrize(
    ("prompt", "images"), [("no slot", 1), ("<image>", 0), ("<image>", 2), ("<image> <image>", 1), ("< image >", 1)]
)
def test_slots_and_images_that_differ_in_number_are_refused_with_both_numbers(family, prompt, images) -> None:
    with pytest.raises(InvalidInput) as caught:
        family.prompt_ids(prompt, [5] * images, letters)
    assert f"{prompt.count('<image>')} <image> slots for {images} images" in str(caught.value)
