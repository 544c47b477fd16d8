"""DeepSeek-OCR-2's graphs compute what transformers' ``deepseek_ocr2`` computes, for all layouts and several sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export.export_errors import ExportError
from models.deepseek_ocr2.images import attention_bias
from models.manifest import Manifest
from models.model_errors import InvalidInput
from models.registry import family_of
from runtime.providers import find_device
from runtime.vision import VisionTower
from tests.export.proof import Proof, check_8_bit_tower, check_streams_beside_each_other, relative_error
from tools.checkpoints import write_random_checkpoint
from tools.deepseek2_checkpoints import DEEPSEEK_OCR_2, FULL_SIZE, Sizes2, config, tensor_shapes

PROMPT = "<image>\nFree OCR."
SHARED = Path(__file__).resolve().parents[3] / "shared" / "checkpoints" / "deepseek-ocr-2"

SIZES = {
    "default": Sizes2(),
    "three heads share keys": Sizes2(sam_channels=(24, 192), encoder_layers=3, layers=2, experts=4, top_k=2),
    "each head has keys": Sizes2(encoder_kv_heads=2, encoder_mlp=96, hidden=96, heads=6, kv_heads=6, sam_layers=2),
}

# Views of this model have 192 and 256 pixels, a quarter of the published ones.
LAYOUTS = [
    pytest.param((190, 120), (1, 1), id="no tiles"),
    pytest.param((192, 192), (1, 1), id="as large as a tile"),
    pytest.param((150, 300), (1, 2), id="1x2"),
    pytest.param((250, 250), (2, 2), id="2x2"),
    pytest.param((300, 420), (2, 3), id="2x3"),
    pytest.param((900, 300), (3, 1), id="3x1"),
    pytest.param((200, 150), (3, 2), id="3x2, hardly larger than a tile"),
    pytest.param((1200, 150), (6, 1), id="6x1"),
]


@pytest.fixture(scope="module")
def proof_of(tmp_path_factory: pytest.TempPathFactory, export_checkpoint: Callable[..., Path]) -> Callable[..., Proof]:
    made: dict[tuple[str, int], Proof] = {}

    def make(name: str = "default", seed: int = 0) -> Proof:
        if (name, seed) not in made:
            folder = tmp_path_factory.mktemp("sizes")
            checkpoint = write_random_checkpoint(folder, SIZES[name], seed=seed, layout=DEEPSEEK_OCR_2)
            made[name, seed] = Proof(checkpoint, exported(export_checkpoint, checkpoint))
        return made[name, seed]

    return make


def exported(export_checkpoint: Callable[..., Path], checkpoint: Path, dtype: str = "f32", **options: Any) -> Path:
    return export_checkpoint(checkpoint, dtype, model_id="deepseek-ocr-2", family="deepseek-ocr-2", **options)


@pytest.mark.parametrize(("size", "grid"), LAYOUTS)
def test_f32_equals_the_reference_for_every_image_layout(proof_of, picture, size, grid) -> None:
    proof, image = proof_of(), picture(*size)
    tiles = 0 if grid == (1, 1) else grid[0] * grid[1]
    prepared = proof.family.prepare_image(image, {})
    assert len(prepared.passes) == tiles + 1
    assert prepared.token_count == 144 * tiles + 257
    proof.check([image], PROMPT)


@pytest.mark.parametrize("name", [name for name in SIZES if name != "default"])
def test_f32_equals_the_reference_for_other_sizes_of_the_model(proof_of, picture, name) -> None:
    proof_of(name, 1).check([picture(300, 420, 1)], PROMPT)


def test_several_images_in_one_prompt_keep_their_order(proof_of, picture) -> None:
    images = [picture(300, 500, 1), picture(100, 120, 2)]
    proof_of().check(images, "First <image>\nsecond <image> compare")


def test_a_prompt_longer_than_a_chunk_of_the_prefill_gives_the_same_logits(proof_of, picture, monkeypatch) -> None:
    monkeypatch.setattr("runtime.decoder.PREFILL_CHUNK", 128)
    proof_of().check([picture(300, 420)], PROMPT, steps=4)


def test_a_query_sees_the_map_and_the_queries_before_it() -> None:
    allowed = attention_bias(3) == 0
    for row in range(6):
        for column in range(6):
            assert allowed[row, column] == (column < 3 or (row >= 3 and column <= row))


def test_a_changed_query_changes_its_own_feature_and_those_behind(
    proof_of, picture, export_checkpoint, tmp_path
) -> None:
    proof = proof_of()
    changed = write_random_checkpoint(tmp_path, SIZES["default"], layout=DEEPSEEK_OCR_2)
    file = next(changed.glob("*.safetensors"))
    tensors = load_file(file)
    tensors["model.qwen2_model.query_1024.weight"][100] += 1
    save_file(tensors, file)
    image = picture(100, 100)
    (before,), (after,) = proof.features([image]), proof.features([image], exported(export_checkpoint, changed))
    moved = np.abs(after - before).max(axis=1)
    assert moved[:100].max() < 1e-6
    assert moved[100:256].min() > 1e-6
    assert moved[256] == 0  # the separator


@pytest.mark.parametrize("neighbours", [1, 3])
def test_a_rows_text_is_the_same_whatever_runs_beside_it(proof_of, picture, neighbours) -> None:
    images = [picture(150 + 60 * i, 200, i) for i in range(neighbours + 1)]
    check_streams_beside_each_other(proof_of().folder, images, PROMPT)


TOLERANCES = {"f16": (1e-2, 2e-2), "q8": (1e-2, 1e-1), "q4": (1e-2, 1.0)}


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_smaller_dtypes_stay_close_to_float32(proof_of, picture, export_checkpoint, dtype) -> None:
    proof, image = proof_of(), picture(300, 420)
    reference = proof.read([image], PROMPT, 16)
    folder = exported(export_checkpoint, proof.checkpoint, dtype)
    features = proof.features([image], folder)
    of_features, of_logits = TOLERANCES[dtype]
    assert relative_error(features[0], reference.features[0]) < of_features
    logits = proof.logits(reference, features, folder)
    assert relative_error(logits, reference.logits) < of_logits
    if dtype != "q4":
        assert (logits.argmax(-1) == reference.logits.argmax(-1)).mean() > 0.8


def test_bfloat16_is_written_for_cuda(proof_of, export_checkpoint) -> None:
    """The exporter has checked the graphs; nothing here can run them."""
    manifest = Manifest.load(exported(export_checkpoint, proof_of().checkpoint, "bf16"))
    assert set(manifest.decoder.files) == {"cuda"}


def test_an_8_bit_tower_keeps_the_features(proof_of, picture, export_checkpoint) -> None:
    proof, image = proof_of(), picture(300, 420)
    folder = exported(export_checkpoint, proof.checkpoint, "q8", vision_dtype="q8", report=True)
    check_8_bit_tower(proof, image, folder)


def test_the_generator_writes_the_published_names_shapes_and_config() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"the published metadata are not at {SHARED}")
    published = json.loads((SHARED / "tensor_shapes.json").read_text())
    assert tensor_shapes(FULL_SIZE) == {name: tuple(shape) for name, shape in published.items()}
    theirs, ours = json.loads((SHARED / "config.json").read_text()), config(FULL_SIZE)
    left_out = {"auto_map", "transformers_version", "language_config"}
    assert {key: value for key, value in theirs.items() if key not in left_out} == {
        key: value for key, value in ours.items() if key not in left_out
    }


CONFIGS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (
        lambda c: c["vision_config"]["width"]["qwen2-0-5b"].update(dim=64),
        "dim is 64, and the encoder's",
    ),
    (lambda c: c["vision_config"]["width"].pop("qwen2-0-5b"), "no qwen2-0-5b"),
    (lambda c: c["projector_config"].update(projector_type="mlp"), "projector_config: projector_type is 'mlp'"),
    (lambda c: c["language_config"].update(use_mla=True), "use_mla is True"),
    (lambda c: c.update(architectures=["DeepseekOCRForCausalLM"]), "family 'deepseek-ocr'"),
]


@pytest.mark.parametrize(("change", "said"), CONFIGS)
def test_config_values_that_the_graphs_do_not_compute_are_refused_by_name(
    tmp_path, export_checkpoint, change, said
) -> None:
    checkpoint = write_random_checkpoint(tmp_path, layout=DEEPSEEK_OCR_2, sizes=Sizes2())
    document = json.loads((checkpoint / "config.json").read_text())
    change(document)
    (checkpoint / "config.json").write_text(json.dumps(document))
    with pytest.raises(ExportError, match=said):
        exported(export_checkpoint, checkpoint)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (Sizes2(queries=(144, 250)), "query_1024.weight has 250 rows; expected a square number"),
        (Sizes2(sam_channels=(40, 96)), "96 channels of queries"),
    ],
)
def test_tensors_of_another_model_are_refused_by_name(tmp_path, export_checkpoint, sizes, said) -> None:
    checkpoint = write_random_checkpoint(tmp_path, sizes, layout=DEEPSEEK_OCR_2)
    with pytest.raises(ExportError, match=said):
        exported(export_checkpoint, checkpoint)


def test_settings_are_checked_and_those_of_the_first_generation_mean_nothing(proof_of, picture) -> None:
    family = proof_of().family
    image = picture(300, 420)
    assert family.prepare_image(image, {"max_tiles": 2}).token_count == 2 * 144 + 257
    assert family.prepare_image(image, {"crop_mode": False, "base_size": 512}).token_count == 6 * 144 + 257
    with pytest.raises(InvalidInput, match="max_tiles is 65"):
        family.prepare_image(image, {"max_tiles": 65})
    with pytest.raises(InvalidInput, match="lower max_tiles"):
        family.prepare_image(picture(800, 800), {"max_tiles": 64})


def test_its_smallest_image_is_one_pass_and_with_settings_shows_tiles(proof_of) -> None:
    proof = proof_of()
    (make,) = proof.family.smallest_image().passes
    tower = VisionTower(proof.folder, proof.manifest, find_device("cpu"))
    assert tower.encode(make())["features"].shape == (1, 144, SIZES["default"].hidden)
    assert len(proof.family.smallest_image({}).passes) > 2
    assert family_of(proof.manifest).smallest_image({"max_tiles": 1}).token_count == 257
