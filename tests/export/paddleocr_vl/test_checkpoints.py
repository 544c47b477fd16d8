"""PaddleOCR-VL's checkpoints as people have them: published, saved again, with other templates, or not understood."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from export import layers
from export.checkpoint import Checkpoint
from export.export_errors import ExportError
from export.graphs import stored_weights
from export.paddleocr_vl import PaddleOcrVlExport
from models.manifest import Manifest
from tests.conftest import SHARED
from tests.export.paddleocr_vl.pairs import edit_json
from tools.paddle_checkpoints import (
    CELLS,
    FULL_SIZE,
    SPECIAL,
    V1_0,
    V1_5,
    PaddleSizes,
    preprocessor_config,
    published_config,
    tensor_shapes,
    write_paddle_checkpoint,
)
from tools.paddle_reference import image_processor, load_paddle
from tools.random_checkpoints import write_without_values

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
    write_without_values(tmp_path / "model.safetensors", tensor_shapes(replace(FULL_SIZE, unused=unused)))
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
