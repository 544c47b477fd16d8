"""Folders with a history: which weights are taken, and which checkpoints are refused with what they are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export.checkpoint import Checkpoint
from export.export_errors import ExportError
from export.pipeline import Job, export_model
from export.source import Source
from tests.export.jobs import TINY, WEIGHTS, edit_json
from tools.checkpoints import write_random_checkpoint
from tools.reference import load_reference

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
EMBEDDING = "model.embed_tokens.weight"


def tensors(value: float) -> dict[str, np.ndarray]:
    return {"a": np.full((2, 3), value, np.float32), "b": np.full(4, value, ml_dtypes.bfloat16)}


def put_single(folder: Path, value: float, age: int) -> None:
    save_file(tensors(value), folder / "model.safetensors")
    os.utime(folder / "model.safetensors", (1e9 - age, 1e9 - age))


def put_shards(folder: Path, value: float, age: int) -> None:
    for shard, name in zip(SHARDS, "ab", strict=True):
        save_file({name: tensors(value)[name]}, folder / shard)
        os.utime(folder / shard, (1e9 - age, 1e9 - age))
    (folder / INDEX).write_text(json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def read(folder: Path, **options: Any) -> tuple[float, str]:
    """The value that all tensors have, and what was said."""
    notes: list[str] = []
    checkpoint = Checkpoint(folder, note=notes.append, **options)
    checkpoint.check({"a": (2, 3), "b": (4,)})
    values = {float(value) for name in "ab" for value in checkpoint.load(name).flat}
    assert len(values) == 1
    return values.pop(), "\n".join(notes)


@pytest.mark.parametrize(("single_age", "word"), [(1, "older"), (9, "newer")])
def test_the_single_file_wins_as_in_transformers_and_the_age_of_the_other_is_said(
    folder: Path, single_age: int, word: str
) -> None:
    put_single(folder, 1, age=single_age)
    put_shards(folder, 2, age=5)
    value, said = read(folder)
    assert value == 1
    assert f"{', '.join(SHARDS)} (named by {INDEX}) is {word} and is not read" in said
    assert said.startswith("warning: ") == (word == "newer")


def test_transformers_takes_the_same_file(tmp_path: Path) -> None:
    """The rule is theirs, so theirs is what it is compared with."""
    folder = write_random_checkpoint(tmp_path / "checkpoint", TINY)
    fresh = {name: array.astype(np.float32) * 2 for name, array in load_file(folder / WEIGHTS).items()}
    save_file(fresh, folder / "model.safetensors", metadata={"format": "pt"})
    expected = load_reference(folder).get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(Checkpoint(folder).load(EMBEDDING), expected)
    np.testing.assert_array_equal(expected, fresh[EMBEDDING])


@pytest.mark.parametrize("index", ["{", json.dumps({"weight_map": {"a": SHARDS[0], "b": "gone.safetensors"}}), "[]"])
def test_an_index_that_leads_nowhere_beside_a_single_file_is_passed_over(folder: Path, index: str) -> None:
    put_single(folder, 1, age=0)
    (folder / INDEX).write_text(index)
    assert read(folder) == (1, "")


def test_a_renamed_shard_is_read_when_it_has_every_tensor(folder: Path) -> None:
    put_shards(folder, 2, age=0)
    (folder / SHARDS[0]).rename(folder / "weights.safetensors")
    value, said = read(folder)
    assert value == 2
    assert f"names {SHARDS[0]}, which is not there; {SHARDS[1]}, weights.safetensors holds every tensor" in said
    save_file({"a": tensors(3)["a"]}, folder / "copy.safetensors")  # which of the two is meant?
    with pytest.raises(ExportError, match="which its index names; finish the download"):
        read(folder)


def test_an_index_may_be_named_with_its_shards_beside_it(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    put_shards(other, 7, age=0)
    assert read(folder, weights=other / INDEX)[0] == 7


def test_weights_in_other_formats_are_named(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ExportError, match=r"pytorch_model\.bin, a format that is not read; save the model again with"):
        Checkpoint(folder)


# What programs that train save: other names, buffers, a resized vocabulary.

WRAPPED = [
    lambda name: f"base_model.model.{name}",
    lambda name: f"module._orig_mod.{name}",
    lambda name: name.replace("model.", "model.language_model.", 1) if (".layers." in name and "vision" not in name and
    "sam" not in name) or "embed_tokens" in name else name,
    lambda name: f"base_model.model.model.{name}",
]  # fmt: skip


@pytest.mark.parametrize("renamed", WRAPPED)
def test_known_spellings_of_names_give_the_same_export(tmp_path: Path, renamed: Any) -> None:
    folder = write_random_checkpoint(tmp_path / "checkpoint", TINY)
    (folder / INDEX).unlink()

    def export() -> dict[str, bytes]:
        target = tmp_path / "out" / "f32"
        source = Source(folder, str(folder), None, "directory")
        export_model(Job("m", "deepseek-ocr", source, "f32", target, force=True), lambda line: None)
        return {file.name: file.read_bytes() for file in target.glob("*.data")}

    expected = export()
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    changed = {renamed(name): array for name, array in weights.items()}
    assert changed.keys() != weights.keys()
    save_file(changed, folder / WEIGHTS)
    assert export() == expected


def test_a_stale_vocab_size_gives_way_to_the_embeddings_rows(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "checkpoint", TINY)
    rows = Checkpoint(folder).shape(EMBEDDING)[0]
    edit_json(folder / "config.json", lambda config: config.update(vocab_size=7))
    edit_json(folder / "config.json", lambda config: config["language_config"].update(vocab_size=7))
    notes: list[str] = []
    checkpoint = Checkpoint(folder, note=notes.append)
    assert checkpoint.config["language_config"]["vocab_size"] == checkpoint.config["vocab_size"] == rows
    assert f"another vocab_size than the embedding has rows; {rows} is taken" in notes[0]


# What is refused, with what it is.

PLAIN = {"l.q_proj.weight": np.ones((4, 4), np.float32)}
QUANTISED: dict[str, tuple[dict[str, Any], dict[str, np.ndarray], str]] = {
    "bitsandbytes 4": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"l.q_proj.weight": np.ones((8, 1), np.uint8), "l.q_proj.weight.absmax": np.ones(1, np.float32)},
        "bitsandbytes, 4 bits: l.q_proj.weight.absmax",
    ),
    "bitsandbytes 8": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"l.q_proj.weight": np.ones((4, 4), np.int8), "l.q_proj.SCB": np.ones(4, np.float32)},
        "bitsandbytes: l.q_proj.SCB",
    ),
    "awq": (
        {"language_config": {"quantization_config": {"quant_method": "awq", "bits": 4}}},
        {"l.q_proj.qweight": np.ones((4, 1), np.int32), "l.q_proj.scales": np.ones((1, 4), np.float16)},
        "AWQ, 4 bits: l.q_proj.qweight",
    ),
    "gptq without its config": (
        {}, {"l.q_proj.qweight": np.ones((4, 1), np.int32), "l.q_proj.g_idx": np.ones(4, np.int32)}, "GPTQ or AWQ: ",
    ),
    "fp8": (
        {"quantization_config": {"quant_method": "fp8"}},
        {"l.q_proj.weight": np.ones((4, 4), ml_dtypes.float8_e4m3fn), "l.q_proj.weight_scale": np.ones(1, np.float32)},
        "fp8: l.q_proj.weight",
    ),
    "compressed-tensors": (
        {"quantization_config": {"quant_method": "compressed-tensors"}},
        {"l.q_proj.weight_packed": np.ones((4, 1), np.int32), "l.q_proj.weight_scale": np.ones(4, np.float32)},
        "compressed-tensors: l.q_proj.weight_",
    ),
    "mlx": (
        {"quantization": {"group_size": 64, "bits": 4}},
        {"l.q_proj.weight": np.ones((4, 1), np.uint32), "l.q_proj.scales": np.ones((4, 1), np.float16)},
        "MLX: l.q_proj.scales",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_refused_with_what_they_are_and_what_to_take(folder: Path, kind: str) -> None:
    config, weights, words = QUANTISED[kind]
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "acme/ocr"}))
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ExportError) as caught:
        Checkpoint(folder)
    assert f"{folder} holds weights that are quantised already ({words}" in str(caught.value)
    assert "take the checkpoint that they were made from (acme/ocr), in bfloat16" in str(caught.value)


def test_plain_weights_whose_config_asks_for_rounding_at_load_are_taken_as_they_are(folder: Path) -> None:
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    save_file(PLAIN, folder / "model.safetensors")
    notes: list[str] = []
    Checkpoint(folder, note=notes.append).check({"l.q_proj.weight": (4, 4)})
    assert "asks for rounding at load; the weights are exported as they are" in notes[0]


def test_a_model_with_its_adapter_still_apart_is_refused_as_that(folder: Path) -> None:
    names = ("base_layer.weight", "lora_A.default.weight", "lora_B.default.weight")
    save_file({f"base_model.model.l.q_proj.{name}": np.ones((4, 4), np.float32) for name in names},
              folder / "model.safetensors")  # fmt: skip
    with pytest.raises(ExportError, match=r"an adapter \(LoRA\) that is not merged .*merge_and_unload"):
        Checkpoint(folder)


def test_an_adapter_is_no_model_and_beside_one_it_is_a_question(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "acme/ocr"}')
    save_file(PLAIN, folder / "adapter_model.safetensors")
    with pytest.raises(ExportError, match=r"holds an adapter .* name both: --source acme/ocr --adapter"):
        Checkpoint(folder)
    save_file(PLAIN, folder / "model.safetensors")
    with pytest.raises(ExportError, match=r"an adapter .* beside the model; --adapter .* merges it, and --weights"):
        Checkpoint(folder)
    Checkpoint(folder, weights=folder / "model.safetensors").check({"l.q_proj.weight": (4, 4)})
