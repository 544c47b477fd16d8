"""PaddleOCR-VL's graphs compute what transformers' own modules compute, and give the same text, on every layout."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from models.model_errors import InvalidInput
from models.registry import family_of
from runtime import Model
from tests.export.largest_pass import largest_pass
from tests.export.paddleocr_vl.pairs import GREEDY, SIZES, check_against_reference
from tests.export.proof import check_together_as_alone
from tools.paddle_checkpoints import (
    V1_0,
    V1_5,
)

LAYOUTS = [
    pytest.param((400, 380), id="near the smallest area"),
    pytest.param((1, 1), id="one pixel"),
    pytest.param((27, 13), id="sides under a block"),
    pytest.param((100, 7), id="a line of small print"),
    pytest.param((28, 5600), id="1 to 200, upright"),
    pytest.param((5600, 28), id="1 to 200, lying"),
    pytest.param((620, 877), id="a page"),
]


@pytest.mark.parametrize("size", LAYOUTS)
def test_f32_equals_the_reference_for_every_layout(pair_of, picture, size) -> None:
    check_against_reference(pair_of(), [picture(*size)])


def test_f32_equals_the_reference_for_an_image_beyond_the_limit(pair_of, picture) -> None:
    """1.5's limit, which a 1.0 checkpoint does not have: the page is made smaller."""
    pair = pair_of(revision=V1_5)
    page = picture(1240, 1754)
    assert family_of(pair.manifest).prepare_image(page, {}).token_count == 30 * 42
    check_against_reference(pair, [page])


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [name for name in SIZES if name != "default"])
def test_f32_equals_the_reference_for_other_sizes_of_the_model(pair_of, picture, name, seed) -> None:
    check_against_reference(pair_of(SIZES[name], seed=seed), [picture(500, 320, seed)], "Table Recognition:")


@pytest.mark.parametrize("revision", [V1_0, V1_5], ids=["1.0", "1.5"])
def test_two_images_in_one_prompt_keep_their_order(pair_of, picture, revision) -> None:
    check_against_reference(pair_of(revision=revision), [picture(500, 200, 1), picture(200, 600, 2)], "Compare them.")


def test_a_prompt_without_an_image_is_answered(pair_of) -> None:
    check_against_reference(pair_of(), [], "What is OCR?")


def test_a_prompt_longer_than_one_prefill_chunk_gives_the_same_text(pair_of, picture, monkeypatch) -> None:
    monkeypatch.setattr("runtime.decoder.PREFILL_CHUNK", 64)
    check_against_reference(pair_of(), [picture(300, 900)])


def test_the_cache_grows_under_an_answer_without_changing_it(pair_of, picture, monkeypatch) -> None:
    """The table of angles grows with it."""
    monkeypatch.setattr("runtime.kv_cache.FIRST_CAPACITY", 16)
    check_against_reference(pair_of(), [picture(400, 380)])


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read with the resource module")
def test_the_largest_page_is_seen_without_the_square_of_its_scores(pair_of) -> None:
    """In a process of its own: 14,400 patches, whose scores would have 0.8 GB for each head."""
    patches, tokens, grown = largest_pass(pair_of(SIZES["real heads"]).folder, 1680)
    assert (patches, tokens) == (14_400, 3_600)
    assert grown < patches**2 * 4 / 2


def test_a_narrower_picture_than_1_to_200_is_refused(pair_of, picture) -> None:
    with Model.open(pair_of().folder, device="cpu", slots=1) as model, pytest.raises(InvalidInput, match="200 times"):
        model.read(picture(28, 5800), **GREEDY)


def test_a_rows_text_is_the_same_whatever_runs_beside_it(pair_of, picture) -> None:
    """Pages of several shapes, so that rows stand at different positions for the same number of tokens."""
    jobs = [([picture(*size, seed)], text) for seed, (size, text) in enumerate([
        ((300, 900), "OCR:"), ((900, 300), "OCR:"), ((400, 400), "Table Recognition:"), ((1, 1), "Chart Recognition:"),
        ((640, 480), "Formula Recognition:"), ((5600, 28), "OCR:"),
    ])]  # fmt: skip
    check_together_as_alone(pair_of().folder, lambda model, job: model.read(*job, **GREEDY).tokens, jobs)


def test_streamed_pieces_are_the_whole_answer(pair_of, picture) -> None:
    with Model.open(pair_of().folder, device="cpu", slots=1) as model:
        for raw in (True, False):
            settings = {**GREEDY, "raw": raw}
            whole = model.read(picture(400, 300), task="table", **settings).text
            pieces = list(model.stream(picture(400, 300), task="table", **settings))
            assert len(pieces) > 1
            assert "".join(pieces) == whole


def answer(model: Model, tokens: list[int], image: Image.Image, monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    """What the model's Python API makes of these tokens, one after the other the most likely by far."""

    def submit(sequence: Any) -> None:
        for token in [*tokens, *model.manifest.tokens.eos]:
            if not sequence.finished:
                logits = np.zeros(model.manifest.sizes.vocabulary, np.float32)
                logits[token] = 10
                sequence.accept(logits)

    monkeypatch.setattr(model.engine, "submit", submit)
    return model.read(image, **options).text


def test_tables_with_many_empty_cells_come_out_whole_by_default(pair_of, picture, monkeypatch) -> None:
    cell, end = (pair_of().tokenizer.token_to_id(token) for token in ("<ecel>", "<nl>"))
    with Model.open(pair_of().folder, device="cpu", slots=1) as model:
        wide = answer(model, [cell] * 30 + [end], picture(60, 60), monkeypatch, task="table")
        long = answer(model, ([cell] * 20 + [end]) * 12, picture(60, 60), monkeypatch, task="table")
        guarded = answer(
            model, [cell] * 30 + [end], picture(60, 60), monkeypatch, task="table", no_repeat_ngram_size=20
        )
    assert wide == f"<table><tr>{'<td></td>' * 30}</tr></table>"
    assert long == f"<table>{('<tr>' + '<td></td>' * 20 + '</tr>') * 12}</table>"
    assert guarded != wide  # who asks for the guards gets them


def test_truncation_and_padding_in_the_tokenizers_file_mean_nothing(pair_of, picture, tmp_path) -> None:
    """A training run leaves them there."""
    pair = pair_of()
    folder = shutil.copytree(pair.folder, tmp_path / "padded")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=4096)
    tokenizer.save(str(folder / "tokenizer.json"))
    manifest = pair.manifest.model_copy(
        update={"files": {name: info for name, info in pair.manifest.files.items() if name != "tokenizer.json"}}
    )
    manifest.save(folder)
    with Model.open(pair.folder, device="cpu", slots=1) as plain, Model.open(folder, device="cpu", slots=1) as padded:
        assert padded.read(picture(60, 60), **GREEDY).tokens == plain.read(picture(60, 60), **GREEDY).tokens


def test_the_manifest_says_what_the_checkpoint_says(pair_of) -> None:
    for revision in (V1_0, V1_5):
        manifest = pair_of(revision=revision).manifest
        assert manifest.prompt["chat_template"] == revision.chat_template
        assert manifest.prompt["special_tokens"]["cls_token"] == "<|begin_of_sentence|>"
        assert {"</s>", "<|IMAGE_START|>", "<|IMAGE_END|>"} <= set(manifest.prompt["control_tokens"])
        assert not {"<ecel>", "<nl>"} & set(manifest.prompt["control_tokens"])
        assert (manifest.image["min_pixels"], manifest.image["max_pixels"]) == (
            revision.min_pixels, revision.max_pixels,
        )  # fmt: skip
        assert (manifest.tokens.bos, manifest.tokens.eos, manifest.tokens.image) == (1, (2,), 100295)
        assert manifest.sizes.rotary is not None
        assert (manifest.sizes.rotary.theta, manifest.sizes.rotary.sections) == (5e5, (4, 6, 6))
