"""PaddleOCR-VL's graphs compute what transformers' own modules compute, and give the same text, on every layout."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from export import layers
from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.graphs import stored_weights
from export.paddleocr_vl import PaddleOcrVlExport
from export.quantize import Blocks, dequantize, dequantize_channels, quantize, quantize_channels
from models.errors import InvalidInput
from models.manifest import Manifest
from models.registry import family_of
from runtime import Model
from runtime.decoder import Decoder
from runtime.providers import find_device
from runtime.vision import VisionTower
from tests.conftest import SHARED
from tools.paddle_checkpoints import (
    CELLS,
    FULL_SIZE,
    SPECIAL,
    V1_0,
    V1_5,
    PaddleSizes,
    Revision,
    preprocessor_config,
    published_config,
    tensor_shapes,
    write_paddle_checkpoint,
)
from tools.paddle_reference import greedy, image_processor, load_paddle, page_features

ROOT = Path(__file__).parents[2]
STEPS = 32
GREEDY: dict[str, Any] = {"max_new_tokens": STEPS, "no_repeat_ngram_size": 0, "stop_on_loop": False, "raw": True}

# Scaled-down models; the last has the real head sizes, of which 72 is no power of two.
SIZES = {
    "default": PaddleSizes(),
    "no unused tensors": PaddleSizes(unused=False),
    "other heads": PaddleSizes(hidden=96, heads=6, kv_heads=1, layers=2, vision_heads=3, width=72, vision_layers=3),
    "real heads": PaddleSizes(
        hidden=128, layers=2, heads=4, head_dim=128, sections=(16, 24, 24), width=144, image_size=112
    ),
}  # fmt: skip


@dataclass
class Pair:
    """One checkpoint, exported and as the reference."""

    checkpoint: Path
    folder: Path

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.load(self.folder)

    @cached_property
    def reference(self) -> Any:
        return load_paddle(self.checkpoint)

    @cached_property
    def processor(self) -> Any:
        return image_processor(self.checkpoint)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    @cached_property
    def allowed(self) -> np.ndarray:
        return np.sort(np.fromiter(self.tokenizer.get_vocab(with_added_tokens=True).values(), np.int64))

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def expected(self, images: list[Image.Image], text: str) -> Expected:
        """What transformers does with the images and the text, from its own prompt on."""
        found = [page_features(self.reference, self.processor, image) for image in images]
        template = (self.checkpoint / "chat_template.jinja").read_text()
        slots = "".join(
            f"<|IMAGE_START|>{'<|IMAGE_PLACEHOLDER|>' * len(features)}<|IMAGE_END|>" for features, _ in found
        )
        end = "Assistant:\n" if "Assistant:\\n" in template else "Assistant: "
        ids = self.encode(f"<|begin_of_sentence|>User: {slots}{text}\n{end}")
        features, grids = [f for f, _ in found], [grid for _, grid in found]
        logits, tokens = greedy(self.reference, ids, features, grids, STEPS, self.allowed)
        ends = [i for i, token in enumerate(tokens) if token in self.manifest.tokens.eos]
        return Expected(ids, features, logits, tokens, tokens[: ends[0] if ends else STEPS][:STEPS])


@dataclass
class Expected:
    prompt_ids: list[int]
    features: list[np.ndarray]
    logits: np.ndarray  # after the prompt and after each token
    tokens: list[int]
    answer: list[int]  # without the end token and what would follow it


def ours(
    pair: Pair, folder: Path, images: list[Image.Image], expected: Expected
) -> tuple[list[np.ndarray], np.ndarray]:
    """Features of each image, and logits with them after the prompt and after each of the reference's tokens."""
    manifest, device = Manifest.load(folder), find_device("cpu")
    family, vision = family_of(manifest), VisionTower(folder, manifest, device)
    prepared = [family.prepare_image(image, {}) for image in images]
    features = [one.assemble([vision.encode(make()) for make in one.passes]) for one in prepared]
    ids = expected.prompt_ids
    positions = family.positions(ids, prepared)
    decoder = Decoder(folder, manifest, device, slots=1)
    embeddings = decoder.embed(ids).copy()
    if features:
        embeddings[np.array(ids) == manifest.tokens.image] = np.concatenate(features)
    logits = [decoder.prefill(0, embeddings, positions.axes)]
    for i, token in enumerate(expected.tokens[:-1]):
        logits.append(decoder.step([token], [len(ids) + i], [positions.next + i])[0].copy())
    return features, np.stack(logits)


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file, which need not be there yet."""
    document = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**document, **changes}))


def relative_error(mine: np.ndarray, reference: np.ndarray) -> float:
    assert mine.shape == reference.shape
    return float(np.abs(mine - reference).max() / np.abs(reference).max())


PairOf = Callable[..., Pair]


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory, export_checkpoint: Callable[..., Path]) -> PairOf:
    made: dict[tuple[PaddleSizes, Revision, int], Pair] = {}

    def make(sizes: PaddleSizes = SIZES["default"], revision: Revision = V1_0, seed: int = 0) -> Pair:
        key = (sizes, revision, seed)
        if key not in made:
            checkpoint = write_paddle_checkpoint(tmp_path_factory.mktemp("paddle"), sizes, revision, seed=seed)
            made[key] = Pair(checkpoint, export_checkpoint(checkpoint, "f32", "paddleocr-vl", "paddleocr-vl"))
        return made[key]

    return make


def check_against_reference(pair: Pair, images: list[Image.Image], text: str = "OCR:") -> None:
    """Features and logits within 1e-4, and the Python API's prompt and text identical to the reference's."""
    expected = pair.expected(images, text)
    features, logits = ours(pair, pair.folder, images, expected)
    for mine, theirs in zip(features, expected.features, strict=True):
        assert relative_error(mine, theirs) < 1e-4
    for step in range(STEPS + 1):
        assert relative_error(logits[step], expected.logits[step]) < 1e-4, f"step {step}"
    with Model.open(pair.folder, device="cpu", slots=1) as model:
        result = model.read(images, text, **GREEDY)
    assert result.finished.usage.prompt_tokens == len(expected.prompt_ids)
    assert result.tokens == expected.answer
    assert result.text == pair.tokenizer.decode(expected.answer, skip_special_tokens=False).strip()


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


LARGEST_PASS = """
import json, resource, sys
from pathlib import Path
from PIL import Image
from models.manifest import Manifest
from models.registry import family_of
from runtime.providers import find_device
from runtime.vision import VisionTower

folder = Path(sys.argv[1])
manifest = Manifest.load(folder)
page = family_of(manifest).prepare_image(Image.effect_noise((1680, 1680), 90), {})
feeds = page.passes[0]()
tower = VisionTower(folder, manifest, find_device("cpu"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
features = tower.encode(feeds)["features"]
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([len(feeds["rotary_cos"]), len(features), grown * (1 if sys.platform == "darwin" else 1024)]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read with the resource module")
def test_the_largest_page_is_seen_without_the_square_of_its_scores(pair_of) -> None:
    """In a process of its own: 14,400 patches, whose scores would have 0.8 GB for each head."""
    command = [sys.executable, "-c", LARGEST_PASS, str(pair_of(SIZES["real heads"]).folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    patches, tokens, grown = json.loads(run.stdout)
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
    folder = pair_of().folder
    with Model.open(folder, device="cpu", slots=1) as model:
        alone = [model.read(images, text, **GREEDY).tokens for images, text in jobs]
    together: list[list[int]] = [[]] * len(jobs)
    with Model.open(folder, device="cpu", slots=4) as model:

        def read(i: int) -> None:
            images, text = jobs[i]
            together[i] = model.read(images, text, **GREEDY).tokens

        threads = [threading.Thread(target=read, args=(i,)) for i in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({tuple(tokens) for tokens in alone}) > 1
    assert together == alone


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

    monkeypatch.setattr(model._engine, "submit", submit)
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


PUBLISHED = SHARED / "checkpoints" / "paddleocr-vl"


@pytest.fixture
def published() -> Path:
    if not PUBLISHED.is_dir():
        pytest.skip(f"the published files are not at {PUBLISHED}")
    return PUBLISHED


def test_generated_checkpoints_have_the_published_layout(published) -> None:
    shapes = json.loads((published / "tensor_shapes.json").read_text())
    assert {name: tuple(shape) for name, shape in shapes.items()} == tensor_shapes(FULL_SIZE)
    for mine, file in (
        (published_config(FULL_SIZE), "config.json"),
        (preprocessor_config(FULL_SIZE, V1_0), "preprocessor_config.json"),
    ):
        theirs = json.loads((published / file).read_text())
        for key, value in mine.items():
            found = theirs[key]
            assert ({k: found[k] for k in value} if isinstance(value, dict) else found) == value, key
    added = json.loads((published / "added_tokens.json").read_text())
    for token, number in {**SPECIAL, **CELLS}.items():
        assert added.get(token, number) == number
    assert set(CELLS) <= set(added)


@pytest.mark.parametrize("unused", [True, False])
def test_the_published_files_are_understood_at_full_size(published, tmp_path, unused) -> None:
    """With a header in place of the weights, and a file behind it that has their length and holds nothing."""
    for name in ("config.json", "generation_config.json", "preprocessor_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((published / name).read_bytes())
    header, end = {}, 0
    for name, shape in tensor_shapes(replace(FULL_SIZE, unused=unused)).items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    checkpoint = Checkpoint(tmp_path)
    family = PaddleOcrVlExport(checkpoint, {})
    parts = family.parts(layers.Precision(layers.FLOAT, layers.FLOAT), layers.Precision(layers.FLOAT, layers.FLOAT))
    weights = [weight for of_graph in stored_weights({"cpu": parts}).values() for weight in of_graph.values()]
    needed = {name: shape for weight in weights for name, shape in weight.recipe.sources.items()}
    checkpoint.check(needed, family.unused)
    assert len(needed) == 608
    assert family.sizes.model_dump() == {
        "layers": 18, "hidden_size": 1024, "kv_heads": 2, "head_dim": 128, "vocabulary": 103424, "max_length": 131072,
        "window": None,
        "rotary": {"theta": 500_000.0, "sections": (16, 24, 24)},
    }  # fmt: skip
    rules = family.image_rules
    assert (rules.patch_size, rules.merge_size, rules.grid, rules.head_dim) == (14, 2, 27, 72)
    assert (rules.min_pixels, rules.max_pixels, rules.rope_theta) == (147384, 2822400, 10_000.0)
    vocabulary = {**SPECIAL, **CELLS}
    tokens = family.tokens(vocabulary)
    assert (tokens.bos, tokens.eos, tokens.image) == (1, (2,), 100295)
    assert family.prompt_rules(vocabulary, list(SPECIAL)).placeholder == "<|IMAGE_PLACEHOLDER|>"


@pytest.mark.parametrize("source", ["chat_template.json", "tokenizer_config.json"])
def test_the_template_may_stand_in_another_file(tmp_path, export_checkpoint, source) -> None:
    checkpoint = write_paddle_checkpoint(tmp_path / "checkpoint", PaddleSizes(layers=1, vision_layers=1))
    (checkpoint / "chat_template.jinja").unlink()
    (checkpoint / source).write_text(json.dumps({"chat_template": V1_5.chat_template}))
    manifest = Manifest.load(export_checkpoint(checkpoint, "f32", "paddleocr-vl", "paddleocr-vl"))
    assert manifest.prompt["chat_template"] == V1_5.chat_template


def test_of_several_templates_the_default_one_is_taken(tmp_path, export_checkpoint) -> None:
    checkpoint = write_paddle_checkpoint(tmp_path / "checkpoint", PaddleSizes(layers=1, vision_layers=1))
    (checkpoint / "chat_template.jinja").unlink()
    templates = [{"name": "other", "template": "?"}, {"name": "default", "template": V1_5.chat_template}]
    edit_json(checkpoint / "tokenizer_config.json", chat_template=templates)
    manifest = Manifest.load(export_checkpoint(checkpoint, "f32", "paddleocr-vl", "paddleocr-vl"))
    assert manifest.prompt["chat_template"] == V1_5.chat_template


def test_a_null_in_generation_config_hides_no_end_token(tmp_path, export_checkpoint) -> None:
    checkpoint = write_paddle_checkpoint(tmp_path / "checkpoint", PaddleSizes(layers=1, vision_layers=1))
    edit_json(checkpoint / "generation_config.json", eos_token_id=None)
    edit_json(checkpoint / "config.json", eos_token_id=[2, 100272])
    manifest = Manifest.load(export_checkpoint(checkpoint, "f32", "paddleocr-vl", "paddleocr-vl"))
    assert manifest.tokens.eos == (2, 100272)


@pytest.fixture
def saved_again(tmp_path) -> tuple[Path, Path]:
    """A checkpoint as published, and the same one loaded and saved by transformers, as every fine-tune is."""
    published = write_paddle_checkpoint(tmp_path / "published", PaddleSizes(layers=1, vision_layers=1, unused=False))
    edit_json(published / "config.json", rope_theta=123_456)
    saved = tmp_path / "saved"
    load_paddle(published).save_pretrained(saved)
    image_processor(published).save_pretrained(saved)
    images = saved / "preprocessor_config.json"
    edit_json(saved / "processor_config.json", image_processor=json.loads(images.read_text()))  # as a whole processor
    images.unlink()
    for name in ("tokenizer.json", "chat_template.jinja", "special_tokens_map.json"):
        (saved / name).write_bytes((published / name).read_bytes())
    config = json.loads((saved / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert "rope_theta" not in config["text_config"]
    return published, saved


def test_a_checkpoint_saved_by_transformers_is_the_same_model(saved_again, export_checkpoint) -> None:
    first, again = (export_checkpoint(folder, "f32", "paddleocr-vl", "paddleocr-vl") for folder in saved_again)
    expected, found = Manifest.load(first), Manifest.load(again)
    assert found.sizes.rotary is not None
    assert found.sizes.rotary.theta == 123_456
    assert (found.sizes, found.image, found.tokens) == (expected.sizes, expected.image, expected.tokens)
    for name in ("vision", "embed", "decoder"):
        data = f"{name}.onnx.data"
        assert found.files[data] == expected.files[data]


def test_a_tied_head_is_the_embedding_where_there_is_no_other(saved_again, export_checkpoint) -> None:
    _, saved = saved_again
    tensors = load_file(saved / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, saved / "model.safetensors")
    both = Manifest.load(export_checkpoint(saved, "f32", "paddleocr-vl", "paddleocr-vl"))
    del tensors["lm_head.weight"]
    save_file(tensors, saved / "model.safetensors")
    tied = Manifest.load(export_checkpoint(saved, "f32", "paddleocr-vl", "paddleocr-vl"))
    assert tied.files["decoder.onnx.data"] == both.files["decoder.onnx.data"]


def test_the_tower_takes_its_theta_from_either_place(tmp_path, export_checkpoint) -> None:
    checkpoint = write_paddle_checkpoint(tmp_path / "checkpoint", PaddleSizes(layers=1, vision_layers=1))
    vision = json.loads((checkpoint / "config.json").read_text())["vision_config"]
    edit_json(checkpoint / "config.json", vision_config={**vision, "rope_parameters": {"rope_theta": 500.0}})
    manifest = Manifest.load(export_checkpoint(checkpoint, "f32", "paddleocr-vl", "paddleocr-vl"))
    assert manifest.image["rope_theta"] == 500.0


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"use_bias": True}, "use_bias is True"),
        ("config.json", {"use_3d_rope": False}, "use_3d_rope is False"),
        ("config.json", {"rope_is_neox_style": False}, "rope_is_neox_style is False"),
        ("config.json", {"hidden_size": "64"}, "hidden_size is '64'"),
        ("config.json", {"image_token_id": 5000}, "no token 5000"),
        ("config.json", {"rope_scaling": {"mrope_section": [4, 6, 7]}}, r"\[4, 6, 7\]; expected three that sum to 16"),
        ("config.json", {"rope_scaling": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ("preprocessor_config.json", {"resample": 2}, "resample is 2"),
        ("preprocessor_config.json", {"patch_size": 16}, "patch_size is 16, and the model's is 14"),
        ("preprocessor_config.json", {"min_pixels": None}, "no min_pixels"),
        ("preprocessor_config.json", "", "preprocessor_config.json, or under image_processor in processor_config.json"),
        ("chat_template.jinja", "", "no chat template"),
        ("chat_template.jinja", "{% for", "^the chat template of the checkpoint is none"),
    ],
)
def test_what_the_exporter_does_not_know_is_named(tmp_path, export_checkpoint, file, change, message) -> None:
    checkpoint = write_paddle_checkpoint(tmp_path / "checkpoint", PaddleSizes(layers=1, vision_layers=1))
    path = checkpoint / file
    if isinstance(change, dict):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    elif change:
        path.write_text(change)
    else:
        path.unlink()
    with pytest.raises(ExportError, match=message):
        export_checkpoint(checkpoint, "f32", "paddleocr-vl", "paddleocr-vl")


@pytest.mark.parametrize(("dtype", "vision", "limit"), [("f16", "f16", 1e-4), ("q8", "q8", 0.06), ("q4", "q8", 0.4)])
def test_other_dtypes_stay_near_f32_and_give_text(pair_of, picture, export_checkpoint, dtype, vision, limit) -> None:
    pair = pair_of()
    folder = export_checkpoint(pair.checkpoint, dtype, "paddleocr-vl", "paddleocr-vl", vision_dtype=vision)
    image = picture(500, 400)
    expected = pair.expected([image], "OCR:")
    features, logits = ours(pair, folder, [image], expected)
    mine, theirs = features[0].ravel(), expected.features[0].ravel()
    assert mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs) > 0.999
    assert np.linalg.norm(logits - expected.logits) / np.linalg.norm(expected.logits) < limit
    with Model.open(folder, device="cpu", slots=1) as model:
        assert model.read(image, **GREEDY).tokens


def rounded_checkpoint(source: Path, folder: Path, blocks: Blocks) -> Path:
    """The checkpoint with the weights that a quantised export really has: blocks in the decoder, channels in vision."""
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = {name: array.astype(np.float32) for name, array in load_file(source / "model.safetensors").items()}
    for name, array in tensors.items():
        is_decoder = name.startswith(("model.", "lm_head"))
        if array.ndim != 2 or "norm" in name or "position" in name:
            continue
        if is_decoder:
            fitting = blocks.fitting(array.shape[1])
            tensors[name] = dequantize(*quantize(array, fitting), fitting, array.shape[1])
        else:
            tensors[name] = dequantize_channels(*quantize_channels(array))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("dtype", "bits"), [("q8", 8), ("q4", 4)])
def test_quantised_graphs_compute_what_the_rounded_weights_say(
    tmp_path, monkeypatch, pair_of, picture, export_checkpoint, dtype, bits
) -> None:
    """With float activations in the decoder; the vision tower's 8-bit activations leave about a percent."""
    monkeypatch.setattr(layers.QuantizedLinear, "ACCURACY_LEVEL", 0)
    checkpoint = pair_of().checkpoint
    folder = export_checkpoint(checkpoint, dtype, "paddleocr-vl", "paddleocr-vl", vision_dtype="q8", block_size=32)
    rounded = Pair(rounded_checkpoint(checkpoint, tmp_path / "rounded", Blocks(bits, 32)), folder)
    image = picture(500, 400)
    expected = rounded.expected([image], "OCR:")
    features, _ = ours(rounded, folder, [image], expected)
    mine, theirs = features[0].ravel(), expected.features[0].ravel()
    assert mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs) > 0.999
    question = rounded.expected([], "What is OCR?")
    _, logits = ours(rounded, folder, [], question)
    assert relative_error(logits, question.logits) < 1e-4


def test_positions_turn_keys_and_queries_by_an_operator_that_every_provider_has(pair_of, export_checkpoint) -> None:
    """CUDA's GroupQueryAttention looks at positions in the first chunk of a prompt only, and no GPU is here to fail."""
    half = export_checkpoint(pair_of().checkpoint, "q8", "paddleocr-vl", "paddleocr-vl")
    files = Manifest.load(half).decoder.files
    assert set(files) == {"cpu", "cuda"}
    for file in files.values():
        nodes = ir.load(half / file).graph
        attention = [node for node in nodes if node.op_type == "GroupQueryAttention"]
        assert len(attention) == SIZES["default"].layers
        for node in attention:
            assert node.attributes["do_rotary"].as_int() == 0
            for turned in node.inputs[:2]:
                rotary = turned.producer()
                assert rotary.op_type == "RotaryEmbedding"
                assert [value.name for value in rotary.inputs[1:]] == ["rotary_rows", "rotary_cos", "rotary_sin"]


def test_the_float16_graphs_for_cuda_are_valid_and_take_float16_angles(pair_of, export_checkpoint) -> None:
    import onnxruntime as ort

    half = export_checkpoint(pair_of().checkpoint, "f16", "paddleocr-vl", "paddleocr-vl")
    manifest = Manifest.load(half)
    for name in ("vision", "embed", "decoder"):
        graph = getattr(manifest, name)
        assert set(graph.files) == {"cpu", "cuda"}
        session = ort.InferenceSession(half / graph.files["cuda"], providers=["CPUExecutionProvider"])
        types = {value.name: value.type for value in (*session.get_inputs(), *session.get_outputs())}
        if name == "decoder":
            assert types["inputs_embeds"] == types["past_key_values.0.key"] == types["rotary_cos"] == "tensor(float16)"
            assert types["logits"] == "tensor(float)"
