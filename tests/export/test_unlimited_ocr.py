"""Unlimited-OCR computes what transformers' ``unlimited_ocr`` computes, far beyond the window of its answers too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.export_errors import ExportError
from models.manifest import Manifest
from models.settings import InferenceSettings
from runtime import Model
from runtime.decoder import Decoder
from runtime.providers import find_device
from runtime.requests import Finished, Request, TextDelta
from tests.export.proof import GREEDY, Proof, check_8_bit_tower, relative_error
from tools.checkpoints import write_random_checkpoint
from tools.unlimited_checkpoints import FULL_SIZE, UNLIMITED_OCR, UnlimitedSizes, config

MARKDOWN, PAGES = "<image>document parsing.", "<image>Multi page parsing."
SHARED = Path(__file__).resolve().parents[3] / "shared" / "checkpoints" / "unlimited-ocr"

SMALL = {"patch": 4, "image_size": 256, "clip_image_size": 224}  # views of 256 and 160 pixels
SIZES = {
    "default": UnlimitedSizes(**SMALL),
    "window of 16": UnlimitedSizes(**SMALL, window=16, layers=2),
    "window of 3": UnlimitedSizes(**SMALL, window=3, layers=2),
    "window of 2, six heads": UnlimitedSizes(**SMALL, window=2, hidden=96, heads=6, kv_heads=6, experts=4, top_k=2),
}


@pytest.fixture(scope="module")
def proof_of(tmp_path_factory: pytest.TempPathFactory, export_checkpoint: Callable[..., Path]) -> Callable[..., Proof]:
    made: dict[str, Proof] = {}

    def make(name: str = "default") -> Proof:
        if name not in made:
            folder = tmp_path_factory.mktemp("sizes")
            checkpoint = write_random_checkpoint(folder, SIZES[name], layout=UNLIMITED_OCR)
            made[name] = Proof(checkpoint, exported(export_checkpoint, checkpoint))
        return made[name]

    return make


def exported(export_checkpoint: Callable[..., Path], checkpoint: Path, dtype: str = "f32", **options: Any) -> Path:
    return export_checkpoint(checkpoint, dtype, model_id="unlimited-ocr", family="unlimited-ocr", **options)


@pytest.mark.parametrize(("size", "grid"), [((150, 100), (1, 1)), ((300, 420), (3, 4)), ((640, 160), (4, 1))])
def test_f32_equals_the_reference_for_every_image_layout(proof_of, picture, size, grid) -> None:
    proof, image = proof_of(), picture(*size)
    tiles = 0 if grid == (1, 1) else grid[0] * grid[1]
    assert len(proof.family.prepare_image(image, {}).passes) == tiles + 1
    proof.check([image], MARKDOWN, steps=8)


def test_an_answer_of_300_tokens_equals_the_reference_beyond_the_window(proof_of, picture) -> None:
    """The window has 128 tokens: 172 of these steps have left some of the answer behind."""
    reference = proof_of().check([picture(150, 100)], MARKDOWN, steps=300)
    assert len(reference.tokens) == 301


@pytest.mark.parametrize("name", [name for name in SIZES if name != "default"])
def test_other_windows_and_sizes_equal_the_reference(proof_of, picture, name) -> None:
    proof_of(name).check([picture(100, 150)], MARKDOWN, steps=48)


def test_full_attention_is_another_answer_and_equals_a_reference_without_window(proof_of, picture) -> None:
    proof, image = proof_of("window of 16"), picture(150, 100)
    windowed = proof.read([image], MARKDOWN, 40)
    features = proof.features([image])
    decoder = proof.reference.model.model.language_model
    for layer in decoder.layers:
        assert getattr(layer.self_attn, "sliding_window", 16) == 16
    proof.settings = {"full_attention": True}
    try:
        full = proof.logits(windowed, features)
    finally:
        proof.settings = {}
    assert relative_error(full[:17], windowed.logits[:17]) < 1e-4  # nothing has left the window yet
    assert relative_error(full[24:], windowed.logits[24:]) > 1e-3
    first = full_logits(proof, windowed, features)
    assert relative_error(full, first) < 1e-4


def full_logits(proof: Proof, reference: Any, features: list[np.ndarray]) -> np.ndarray:
    """transformers' logits over the same tokens in one pass of plain causal attention."""
    import torch
    from transformers import UnlimitedOcrForConditionalGeneration

    from tools.reference import embed, filled, reference_config

    settings = reference_config(proof.checkpoint)
    settings.text_config.layer_types = ["full_attention"] * settings.text_config.num_hidden_layers
    model = filled(UnlimitedOcrForConditionalGeneration, proof.checkpoint, settings, torch.float32)
    ids = [*reference.prompt_ids, *reference.tokens[:-1]]
    embeddings = embed(model, ids).copy()
    embeddings[np.array(ids) == proof.manifest.tokens.image] = np.concatenate(features)
    with torch.no_grad():
        logits = model(inputs_embeds=torch.from_numpy(embeddings)[None], use_cache=False).logits[0].numpy()
    return logits[len(reference.prompt_ids) - 1 :]


def test_several_pages_are_global_views_at_one_slot_in_one_generation(proof_of, picture) -> None:
    proof = proof_of("window of 16")
    pages = [picture(300, 420, 1), picture(500, 200, 2), picture(100, 100, 3)]
    reference = proof.check(pages, PAGES, steps=40)
    tokens = 17 * 16 + 1
    image = proof.manifest.tokens.image
    ids = reference.prompt_ids
    assert ids[1 : 1 + 3 * tokens] == [image] * (3 * tokens)
    assert ids == proof.prompt_ids("<image>\n<image>\n<image>\nMulti page parsing.", [tokens] * 3)
    with Model.open(proof.folder, device="cpu", slots=1) as model:
        asked = model.read(pages, task="pages", max_new_tokens=40, raw=True, **GREEDY)
        assert asked.text == proof.text_of(reference)
        assert asked.finished.usage.image_tokens == 3 * tokens


def test_prompts_of_several_images_in_their_places_stay_there(proof_of) -> None:
    proof = proof_of()
    image = proof.manifest.tokens.image
    ids = proof.prompt_ids("First <image>\nsecond <image> compare", [2, 3])
    assert [len(list(run)) for run in _runs(ids, image)] == [2, 3]
    assert proof.prompt_ids("<image>\ndocument parsing.", [4]) == proof.prompt_ids(MARKDOWN, [4])
    assert proof.prompt_ids("<image>\nFree OCR.", [4]) != proof.prompt_ids("<image>Free OCR.", [4])


def _runs(ids: list[int], image: int) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    for token in ids:
        if token == image:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def test_rows_of_every_age_share_a_batch_and_keep_their_texts(proof_of, picture) -> None:
    """Short and long answers, some beyond the window, some with full attention; rows move as others end."""
    proof = proof_of("window of 16")
    images = [picture(120 + 10 * i, 100, i) for i in range(5)]
    budgets = (90, 10, 60, 25, 80)
    settings = [
        InferenceSettings(max_new_tokens=budget, family={"full_attention": i == 2}, **GREEDY)
        for i, budget in enumerate(budgets)
    ]
    with Model.open(proof.folder, device="cpu", slots=4) as model:

        def finished(one: Any) -> str:
            pieces = []
            while not isinstance(event := one.next_event(), Finished):
                pieces.append(event.text if isinstance(event, TextDelta) else "")
            return "".join(pieces)

        requests = [Request(MARKDOWN, [image], own, raw=True) for image, own in zip(images, settings, strict=True)]
        alone = [finished(model.submit(request)) for request in requests]
        together = [model.submit(request) for request in requests]
        assert [finished(one) for one in together] == alone
    assert len(set(alone)) == len(alone)


def test_the_cache_stays_as_large_as_the_prompt_and_the_window(proof_of, monkeypatch) -> None:
    monkeypatch.setattr("runtime.kv_cache.FIRST_CAPACITY", 32)
    proof = proof_of("window of 16")
    decoder = Decoder(proof.folder, proof.manifest, find_device("cpu"), slots=2)
    rng = np.random.default_rng(0)
    for row, prompt in enumerate((20, 40)):
        ids = list(rng.integers(3, 200, prompt))
        decoder.prefill(row, decoder.embed(ids), window=16)
    for i in range(400):
        lengths = [20 + min(i, 15), 40 + min(i, 15)]
        decoder.step([5, 6], lengths, [20 + i, 40 + i])
    assert decoder.capacity == 64


TOLERANCES = {"f16": (1e-2, 2e-2), "q8": (1e-2, 1e-1), "q4": (1e-2, 1.0)}


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_smaller_dtypes_stay_close_to_float32(proof_of, picture, export_checkpoint, dtype) -> None:
    proof, image = proof_of("window of 16"), picture(300, 420)
    reference = proof.read([image], MARKDOWN, 40)
    folder = exported(export_checkpoint, proof.checkpoint, dtype)
    features = proof.features([image], folder)
    of_features, of_logits = TOLERANCES[dtype]
    assert relative_error(features[0], reference.features[0]) < of_features
    assert relative_error(proof.logits(reference, features, folder), reference.logits) < of_logits


def test_bfloat16_is_written_for_cuda(proof_of, export_checkpoint) -> None:
    """The exporter has checked the graphs, tests of graphs for CUDA have run their twins; nothing here can run them."""
    manifest = Manifest.load(exported(export_checkpoint, proof_of("window of 16").checkpoint, "bf16"))
    assert set(manifest.decoder.files) == {"cuda"}
    assert manifest.sizes.window == 16


@pytest.mark.parametrize("size", [(150, 100), (300, 420)], ids=["one view", "tiles"])
def test_an_8_bit_tower_keeps_features_and_a_long_answer(proof_of, picture, export_checkpoint, size) -> None:
    """Judged as DeepSeek-OCR's: by direction, with planted outliers too, and by what the decoder makes of it."""
    proof, image = proof_of("window of 16"), picture(*size)
    folder = exported(export_checkpoint, proof.checkpoint, "q8", vision_dtype="q8", report=True)
    ours = check_8_bit_tower(proof, image, folder)
    reference = proof.read([image], MARKDOWN, 40)
    assert relative_error(proof.logits(reference, [ours]), reference.logits) < 0.1


def test_the_published_sizes_and_rules_come_from_the_config(proof_of) -> None:
    manifest: Manifest = proof_of().manifest
    assert manifest.sizes.window == 128
    assert manifest.sizes.rotary is not None
    assert manifest.sizes.rotary.sections == (16,)
    assert manifest.image["max_tiles"] == 32


def test_the_generator_writes_the_published_config() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"the published metadata are not at {SHARED}")
    theirs, ours = json.loads((SHARED / "config.json").read_text()), config(FULL_SIZE)
    left_out = {"auto_map", "transformers_version", "language_config", "vision_config"}
    assert {key: value for key, value in theirs.items() if key not in left_out} == {
        key: value for key, value in ours.items() if key not in left_out
    }
    assert theirs["language_config"]["sliding_window_size"] == ours["language_config"]["sliding_window_size"]


@pytest.mark.parametrize(("value", "said"), [(None, "no sliding_window_size"), (0, "is 0"), ("128", "is '128'")])
def test_a_window_that_is_none_is_refused_by_name(tmp_path, export_checkpoint, value, said) -> None:
    checkpoint = write_random_checkpoint(tmp_path, SIZES["default"], layout=UNLIMITED_OCR)
    document = json.loads((checkpoint / "config.json").read_text())
    document["sliding_window_size"] = document["language_config"]["sliding_window_size"] = value
    (checkpoint / "config.json").write_text(json.dumps(document))
    with pytest.raises(ExportError, match=f"sliding_window_size.*{said}|{said}"):
        exported(export_checkpoint, checkpoint)
