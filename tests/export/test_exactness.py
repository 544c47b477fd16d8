"""The exported graphs compute what transformers' own modules compute, on several sizes of the model and all layouts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from models.deepseek_ocr.images import ImageSettings, make_views, normalise
from models.manifest import Manifest
from models.registry import family_of
from runtime import Model
from runtime.decoder import Decoder
from runtime.providers import find_device
from runtime.vision import VisionTower
from tests.export.proof import types_of_cuda_graphs
from tools.checkpoints import Sizes, write_random_checkpoint
from tools.reference import embed, greedy_logits, image_features, load_reference

STEPS = 32

SIZES = {
    "default": Sizes(),
    "six heads, two dense layers": Sizes(
        hidden=96, heads=6, kv_heads=6, layers=4, dense_layers=2, experts=6, top_k=2, expert_mlp=48, shared_experts=1
    ),
    "one expert of four": Sizes(
        layers=2, experts=4, top_k=1, clip_layers=3, clip_heads=2, sam_layers=4, sam_global=(0, 3)
    ),
    "all experts": Sizes(layers=2, experts=4, top_k=4, sam_window=7, sam_channels=(24, 32), sam_neck=16),
}  # fmt: skip

ONE_IMAGE = [
    pytest.param((600, 400), {}, (1, 1), id="no tiles"),
    pytest.param((500, 1000), {}, (1, 2), id="1x2"),
    pytest.param((1300, 640), {}, (2, 1), id="2x1"),
    pytest.param((900, 1350), {}, (2, 3), id="2x3"),
    pytest.param((1920, 1920), {}, (3, 3), id="3x3"),
    pytest.param((700, 500), {"crop_mode": False, "image_size": 512}, (1, 1), id="512"),
    pytest.param((700, 500), {"crop_mode": False, "image_size": 640}, (1, 1), id="640"),
    pytest.param((700, 500), {"crop_mode": False, "image_size": 1024}, (1, 1), id="1024"),
    pytest.param((700, 500), {"crop_mode": False, "image_size": 1280}, (1, 1), id="1280"),
]


@dataclass
class Pair:
    """One checkpoint, exported and as the reference."""

    checkpoint: Path
    folder: Path
    manifest: Manifest
    reference: Any
    vision: VisionTower
    tokenizer: Tokenizer

    @property
    def known(self) -> int:
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    def features(self, image: Image.Image, settings: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Image features [tokens, hidden] of ours and of the reference."""
        family = family_of(self.manifest)
        prepared = family.prepare_image(image, settings)
        ours = prepared.assemble([self.vision.encode(make()) for make in prepared.passes])
        views = make_views(image, ImageSettings.of(settings), family.rules)
        tiles = None if views.tiles is None else normalise(views.tiles, family.rules)
        return ours, image_features(self.reference, normalise(views.whole, family.rules), tiles, views.grid)


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory, export_checkpoint: Callable[..., Path]) -> Callable[..., Pair]:
    made: dict[tuple[Sizes, int], Pair] = {}

    def make(sizes: Sizes, seed: int) -> Pair:
        if (sizes, seed) not in made:
            checkpoint = write_random_checkpoint(tmp_path_factory.mktemp("sizes"), sizes, seed=seed)
            folder = export_checkpoint(checkpoint)
            manifest = Manifest.load(folder)
            made[sizes, seed] = Pair(
                checkpoint, folder, manifest, load_reference(checkpoint),
                VisionTower(folder, manifest, find_device("cpu")), Tokenizer.from_file(str(folder / "tokenizer.json")),
            )  # fmt: skip
        return made[sizes, seed]

    return make


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def decode_ours(
    pair: Pair, prompt_ids: list[int], features: list[np.ndarray], tokens: list[int], folder: Path | None = None
) -> np.ndarray:
    """Logits [len(tokens) + 1, vocabulary] after the prompt and after each of the given tokens."""
    folder = folder or pair.folder
    manifest = Manifest.load(folder)
    decoder = Decoder(folder, manifest, find_device("cpu"), slots=1)
    embeddings = decoder.embed(prompt_ids).copy()
    if features:
        embeddings[np.array(prompt_ids) == manifest.tokens.image] = np.concatenate(features)
    logits = [decoder.prefill(0, embeddings)]
    for i, token in enumerate(tokens):
        logits.append(decoder.step([token], [len(prompt_ids) + i])[0].copy())
    return np.stack(logits)


def reference_logits(
    pair: Pair, prompt_ids: list[int], features: list[np.ndarray], steps: int = STEPS
) -> tuple[np.ndarray, list[int]]:
    embeddings = embed(pair.reference, prompt_ids).copy()
    if features:
        embeddings[np.array(prompt_ids) == pair.manifest.tokens.image] = np.concatenate(features)
    return greedy_logits(pair.reference, embeddings, steps, pair.known)


def check_against_reference(pair: Pair, images: list[Image.Image], prompt: str, settings: Mapping[str, Any]) -> None:
    """Features and logits within 1e-4, and the text that the Python API gives identical to the reference's."""
    ours, theirs = zip(*(pair.features(image, settings) for image in images), strict=True)
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.shape == reference.shape
        assert relative_error(mine, reference) < 1e-4
    encode = lambda text: pair.tokenizer.encode(text, add_special_tokens=False).ids
    prompt_ids = family_of(pair.manifest).prompt_ids(prompt, [len(f) for f in ours], encode)
    expected, tokens = reference_logits(pair, prompt_ids, list(theirs))
    logits = decode_ours(pair, prompt_ids, list(ours), tokens[:-1])
    for step in range(STEPS + 1):
        assert relative_error(logits[step], expected[step]) < 1e-4, f"step {step}"
    with Model.open(pair.folder, device="cpu", slots=1) as model:
        result = model.read(
            images, prompt, max_new_tokens=STEPS, no_repeat_ngram_size=0, stop_on_loop=False, **settings
        )
    ends = [i for i, token in enumerate(tokens) if token in pair.manifest.tokens.eos]
    greedy = tokens[: ends[0] if ends else STEPS][:STEPS]
    assert result.tokens == greedy
    assert result.text == pair.tokenizer.decode(greedy, skip_special_tokens=False).strip()


@pytest.mark.parametrize(("size", "settings", "grid"), ONE_IMAGE)
def test_f32_equals_the_reference_for_every_image_layout(pair_of, picture, size, settings, grid) -> None:
    pair = pair_of(SIZES["default"], 0)
    image = picture(*size)
    assert make_views(image, ImageSettings.of(settings), family_of(pair.manifest).rules).grid == grid
    check_against_reference(pair, [image], "<image>\nFree OCR.", settings)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [name for name in SIZES if name != "default"])
def test_f32_equals_the_reference_for_other_sizes_of_the_model(pair_of, picture, name, seed) -> None:
    check_against_reference(pair_of(SIZES[name], seed), [picture(500, 900, seed)], "<image>\nFree OCR.", {})


def test_patch_size_and_geometry_come_from_the_checkpoint(pair_of, picture) -> None:
    small = Sizes(patch=8, image_size=256, clip_image_size=112, sam_window=7)
    pair = pair_of(small, 3)
    settings = {"base_size": 256, "image_size": 160}
    assert make_views(picture(300, 500), ImageSettings.of(settings), family_of(pair.manifest).rules).grid == (2, 3)
    check_against_reference(pair, [picture(300, 500)], "<image>\nFree OCR.", settings)


def test_two_images_in_one_prompt_keep_their_order(pair_of, picture) -> None:
    pair = pair_of(SIZES["default"], 0)
    images = [picture(500, 1000, 1), picture(300, 200, 2)]
    check_against_reference(pair, images, "First <image>\nsecond <image> compare", {})


def test_a_prompt_longer_than_one_prefill_chunk_gives_the_same_logits(pair_of, monkeypatch) -> None:
    pair = pair_of(SIZES["default"], 0)
    prompt_ids = list(np.random.default_rng(0).integers(3, pair.known, 300))
    expected, tokens = reference_logits(pair, prompt_ids, [], steps=4)
    monkeypatch.setattr("runtime.decoder.PREFILL_CHUNK", 128)
    logits = decode_ours(pair, prompt_ids, [], tokens[:-1])
    assert relative_error(logits, expected) < 1e-4


def test_routing_weights_are_renormalised_when_the_config_says_so(tmp_path, export_checkpoint) -> None:
    """transformers' router never renormalises, as the published one; a hook on it does."""
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    config["language_config"]["norm_topk_prob"] = True
    (checkpoint / "config.json").write_text(json.dumps(config))
    folder = export_checkpoint(checkpoint)
    reference = load_reference(checkpoint)
    routers = [layer.mlp.gate for layer in reference.model.language_model.layers if hasattr(layer.mlp, "gate")]
    assert routers
    for router in routers:
        router.register_forward_hook(_renormalise)
    manifest = Manifest.load(folder)
    decoder = Decoder(folder, manifest, find_device("cpu"), slots=1)
    prompt_ids = list(range(3, 40))
    expected, _ = greedy_logits(reference, embed(reference, prompt_ids), 0, manifest.sizes.vocabulary)
    assert relative_error(decoder.prefill(0, decoder.embed(prompt_ids)), expected[0]) < 1e-4


def _renormalise(_module: Any, _inputs: Any, output: Any) -> Any:
    logits, weights, indices = output
    return logits, weights / weights.sum(-1, keepdim=True), indices


def test_f16_stays_close_to_f32_when_both_are_fed_the_same_tokens(pair_of, picture, export_checkpoint) -> None:
    pair = pair_of(SIZES["default"], 0)
    half = export_checkpoint(pair.checkpoint, "f16")
    manifest = Manifest.load(half)
    family = family_of(manifest)
    vision = VisionTower(half, manifest, find_device("cpu"))
    agreed, total = 0, 0
    for seed in range(4):
        image = picture(500, 900, seed)
        _, reference_features = pair.features(image, {})
        prepared = family.prepare_image(image, {})
        features = prepared.assemble([vision.encode(make()) for make in prepared.passes])
        assert relative_error(features, reference_features) < 1e-2
        encode = lambda text: pair.tokenizer.encode(text, add_special_tokens=False).ids
        prompt_ids = family.prompt_ids("<image>\nFree OCR.", [len(features)], encode)
        expected, tokens = reference_logits(pair, prompt_ids, [reference_features])
        logits = decode_ours(pair, prompt_ids, [features], tokens[:-1], half)
        assert relative_error(logits, expected) < 1e-2
        agreed += int((logits.argmax(-1) == expected.argmax(-1)).sum())
        total += len(expected)
    assert agreed / total >= 0.95


def test_the_float16_graphs_for_cuda_are_valid_and_share_the_data_file(pair_of, export_checkpoint) -> None:
    """They cannot run here (the CPU's float16 MoE is wrong), but they load, with float16 caches and embeddings."""
    half = export_checkpoint(pair_of(SIZES["default"], 0).checkpoint, "f16")
    manifest, types = Manifest.load(half), types_of_cuda_graphs(half)["decoder"]
    assert types["inputs_embeds"] == types["past_key_values.0.key"] == "tensor(float16)"
    assert types["logits"] == "tensor(float)"
    assert sum(info.size for file, info in manifest.files.items() if file.endswith(".data")) < 1.1 * 2 * (
        manifest.parameters
    ) + (1 << 20)
