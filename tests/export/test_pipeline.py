"""An export is published whole or not at all, whatever is wrong with the source and whenever the exporter is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from export import pipeline, publish
from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.pipeline import Job, export_model
from export.source import Source
from models.errors import ManifestError
from models.manifest import FILE_NAME, Manifest, lock_file, retired_folder
from tools.checkpoints import Sizes, write_random_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # seconds until a test that hangs fails

TINY = Sizes(
    hidden=32, layers=2, experts=4, top_k=2, expert_mlp=16, dense_mlp=32, vocabulary=300, max_positions=512,
    sam_width=24, sam_layers=2, sam_heads=2, sam_global=(1,), sam_mlp=32, sam_neck=16, sam_channels=(16, 32),
    image_size=256, clip_layers=1, clip_heads=2, clip_mlp=32,
)  # fmt: skip
WEIGHTS = "model-00001-of-000001.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path / "checkpoint", TINY)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "f32"


def job(checkpoint: Path, target: Path, **changes: Any) -> Job:
    source = Source(checkpoint, str(checkpoint), None, "directory")
    return Job(
        **{"model_id": "tiny", "family": "deepseek-ocr", "source": source, "dtype": "f32", "target": target, **changes}
    )


def export(checkpoint: Path, target: Path, **changes: Any) -> tuple[Manifest, list[str]]:
    """Export in this process; the manifest and the lines that were reported."""
    lines: list[str] = []
    return export_model(job(checkpoint, target, **changes), lines.append), lines


def leftovers(target: Path) -> set[str]:
    """What stands beside the target, its lock aside."""
    return {path.name for path in target.parent.iterdir()} - {target.name, lock_file(target).name}


def refused(checkpoint: Path, target: Path, **changes: Any) -> str:
    """The error of an export that must publish nothing and leave nothing."""
    with pytest.raises(ExportError) as caught:
        export(checkpoint, target, **changes)
    assert not target.exists()
    assert not leftovers(target)
    return str(caught.value)


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def edit_tensors(checkpoint: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    change(tensors)
    save_file(tensors, checkpoint / WEIGHTS)


def graph_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".onnx", ".data")}


# What is published.


@pytest.mark.parametrize("dtype", pipeline.DTYPES)
def test_the_manifest_lists_exactly_the_files_with_true_sizes_and_hashes(checkpoint, target, dtype) -> None:
    manifest, _ = export(checkpoint, target, dtype=dtype)
    assert Manifest.load(target) == manifest
    manifest.verify(target)
    assert {file.name for file in target.iterdir()} == {*manifest.files, FILE_NAME}
    for graph in (manifest.vision, manifest.embed, manifest.decoder):
        assert set(graph.files.values()) <= set(manifest.files)
    assert not leftovers(target)
    assert (manifest.id, manifest.dtype, manifest.source.origin) == ("tiny", dtype, "directory")
    assert manifest.source.name == str(checkpoint)


def test_the_manifest_has_the_sizes_and_tokens_of_the_checkpoint(checkpoint, target) -> None:
    manifest, _ = export(checkpoint, target)
    sizes = manifest.sizes
    assert (sizes.layers, sizes.hidden_size, sizes.kv_heads, sizes.head_dim) == (2, 32, 2, 16)
    assert (sizes.vocabulary, sizes.max_length) == (300, 512)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    assert (manifest.tokens.bos, manifest.tokens.eos) == (0, (1,))
    assert manifest.tokens.image == tokenizer.token_to_id("<image>")
    assert manifest.parameters == sum(info.size for info in _shards(checkpoint).values())


def _shards(folder: Path) -> dict[str, np.ndarray]:
    return {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}


def test_one_file_and_many_shards_with_and_without_index_give_the_same_bytes(tmp_path, checkpoint, target) -> None:
    sharded = write_random_checkpoint(tmp_path / "sharded", TINY, shards=5)
    single = tmp_path / "single"
    shutil.copytree(checkpoint, single)
    (single / WEIGHTS).rename(single / "model.safetensors")
    (single / "model.safetensors.index.json").unlink()
    export(checkpoint, target)
    for other in (sharded, single):
        export(other, target.with_name(other.name))
        assert graph_bytes(target.with_name(other.name)) == graph_bytes(target)


def test_damage_is_found_by_size_when_loading_and_by_hash_when_verifying(checkpoint, target) -> None:
    export(checkpoint, target)
    data = target / "decoder.onnx.data"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    with pytest.raises(ManifestError, match=r"decoder\.onnx\.data"):
        Manifest.load(target).verify(target)
    data.write_bytes(content[:-1])
    with pytest.raises(ManifestError, match=r"decoder\.onnx\.data"):
        Manifest.load(target)


# Sources that do not fit.


@pytest.mark.parametrize("left", [0, 100, -1])
def test_a_truncated_weight_file_publishes_nothing(checkpoint, target, left) -> None:
    file = checkpoint / WEIGHTS
    file.write_bytes(file.read_bytes()[:left])
    assert WEIGHTS in refused(checkpoint, target)


def test_a_missing_shard_publishes_nothing(tmp_path, target) -> None:
    sharded = write_random_checkpoint(tmp_path / "sharded", TINY, shards=3)
    (sharded / "model-00002-of-000003.safetensors").unlink()
    assert "model-00002-of-000003.safetensors" in refused(sharded, target)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.experts.3.down_proj.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight",
        "model.sam_model.blocks.1.attn.rel_pos_h", "model.sam_model.blocks.0.attn.rel_pos_h", "model.view_seperator",
        "model.sam_model.patch_embed.proj.weight", "model.vision_model.transformer.layers.0.mlp.fc1.weight",
    ],
)  # fmt: skip
def test_a_missing_misnamed_or_misshapen_tensor_is_named(checkpoint, target, name) -> None:
    whole = (checkpoint / WEIGHTS).read_bytes()
    shape = load_file(checkpoint / WEIGHTS)[name].shape

    edit_tensors(checkpoint, lambda tensors: tensors.pop(name))
    assert name in refused(checkpoint, target)

    (checkpoint / WEIGHTS).write_bytes(whole)
    edit_tensors(checkpoint, lambda tensors: tensors.update({f"{name}_old": tensors.pop(name)}))
    error = refused(checkpoint, target)
    assert name in error
    if "unexpected" in error:
        assert f"unexpected: {name}_old {list(shape)} in {WEIGHTS}" in error

    (checkpoint / WEIGHTS).write_bytes(whole)
    edit_tensors(checkpoint, lambda tensors: tensors.update({name: np.ones((*shape[:-1], shape[-1] + 1), np.float32)}))
    error = refused(checkpoint, target)
    assert "wrong shape" in error
    assert WEIGHTS in error


def test_a_wrong_shape_is_told_with_both_shapes_and_the_file(checkpoint, target) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({"model.norm.weight": np.ones(33, np.float32)}))
    expected = f"wrong shape: model.norm.weight is [33] in {WEIGHTS}, expected [32]"
    assert expected in refused(checkpoint, target)


def test_an_integer_tensor_is_refused(checkpoint, target) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({"model.norm.weight": np.ones(32, np.int8)}))
    assert f"wrong type: model.norm.weight is I8 in {WEIGHTS}" in refused(checkpoint, target)


def test_tensors_that_the_graphs_do_not_use_may_be_there(checkpoint, target) -> None:
    edit_tensors(
        checkpoint,
        lambda tensors: tensors.update({"model.vision_model.embeddings.position_ids": np.arange(257)[None]}),
    )
    export(checkpoint, target)


@pytest.mark.parametrize("dtype", pipeline.DTYPES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.layers.1.mlp.experts.2.up_proj.weight", np.nan), ("model.layers.0.self_attn.k_proj.weight", np.inf),
        ("model.sam_model.neck.0.weight", -np.inf), ("model.embed_tokens.weight", np.nan),
    ],
)  # fmt: skip
def test_weights_that_are_not_finite_are_refused_by_name(checkpoint, target, dtype, value, name) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[name].flat[3] = value

    edit_tensors(checkpoint, spoil)
    error = refused(checkpoint, target, dtype=dtype)
    assert name in error
    assert "not finite" in error


def test_weights_beyond_float16_are_refused_for_f16_and_taken_for_f32(checkpoint, target) -> None:
    name = "model.layers.1.mlp.shared_experts.gate_proj.weight"

    def enlarge(tensors: dict[str, np.ndarray]) -> None:
        tensors[name].flat[3] = 131072

    edit_tensors(checkpoint, enlarge)
    error = refused(checkpoint, target, dtype="f16")
    assert name in error
    assert "131072" in error
    assert "--vision-dtype f32" in error  # a weight of either part may be the one
    assert "--dtype f32" in error
    export(checkpoint, target)


def test_a_model_whose_outputs_overflow_is_not_published(checkpoint, target) -> None:
    def enlarge(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"] = np.full_like(tensors["lm_head.weight"], 1e38)
        tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], 1e10)

    edit_tensors(checkpoint, enlarge)
    assert "not finite" in refused(checkpoint, target)


DECODER_KEYS = [
    "bos_token_id", "eos_token_id", "hidden_size", "intermediate_size", "max_position_embeddings",
    "moe_intermediate_size", "num_attention_heads", "num_experts_per_tok", "num_hidden_layers", "vocab_size",
]  # fmt: skip


@pytest.mark.parametrize("key", DECODER_KEYS)
def test_a_missing_config_value_is_named(checkpoint, target, key) -> None:
    def drop(config: dict[str, Any]) -> None:
        del config[key], config["language_config"][key]

    edit_json(checkpoint / "config.json", drop)
    assert key in refused(checkpoint, target)


@pytest.mark.parametrize("key", DECODER_KEYS)
def test_the_copy_at_the_top_level_serves_where_language_config_is_silent(checkpoint, target, key) -> None:
    edit_json(checkpoint / "config.json", lambda config: config["language_config"].pop(key))
    export(checkpoint, target)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ((), "vision_config"), (("vision_config",), "width"), (("vision_config",), "image_size"),
        *((("vision_config", "width"), key) for key in ("sam_vit_b", "clip-l-14-224")),
        *((("vision_config", "width", "sam_vit_b"), key)
          for key in ("layers", "heads", "width", "global_attn_indexes", "downsample_channels")),
        *((("vision_config", "width", "clip-l-14-224"), key)
          for key in ("layers", "heads", "width", "image_size", "patch_size")),
    ],
)  # fmt: skip
def test_a_missing_vision_value_is_named(checkpoint, target, part, key) -> None:
    def drop(config: dict[str, Any]) -> None:
        for name in part:
            config = config[name]
        del config[key]

    edit_json(checkpoint / "config.json", drop)
    assert key in refused(checkpoint, target)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_mla", True), ("topk_method", "noaux_tc"), ("topk_method", "group_limited_greedy"),
        ("scoring_func", "sigmoid"), ("hidden_act", "gelu"), ("attention_bias", True), ("tie_word_embeddings", True),
        ("rope_scaling", {"type": "yarn", "factor": 40}), ("moe_layer_freq", 2),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("rope_parameters", {"full_attention": {"rope_type": "default"}}),
        ("sliding_window", 128), ("sliding_window_size", 128), ("layer_types", ["sliding_attention"]),
        ("hidden_activation", "gelu_pytorch_tanh"), ("mlp_bias", True), ("use_qk_norm", True),
        ("norm_type", "layernorm"),
        ("final_logit_softcapping", 30.0), ("partial_rotary_factor", 0.25), ("logits_scaling", 8.0),
    ],
)  # fmt: skip
def test_a_config_value_that_the_graphs_do_not_implement_is_named(checkpoint, target, key, value) -> None:
    edit_json(checkpoint / "config.json", lambda config: config["language_config"].update({key: value}))
    error = refused(checkpoint, target)
    assert f"{key} is {value!r}" in error


def test_what_only_the_top_level_says_of_the_decoder_is_heeded_too(checkpoint, target) -> None:
    """As in Unlimited-OCR's config, whose tensors are DeepSeek-OCR's."""

    def window(config: dict[str, Any]) -> None:
        config["sliding_window"] = 128
        config["language_config"]["sliding_window"] = None

    edit_json(checkpoint / "config.json", window)
    assert "sliding_window is 128, which this exporter does not compute" in refused(checkpoint, target)


def test_the_new_spelling_of_the_rotary_base_is_the_old_one(checkpoint, target) -> None:
    def spelt(**values: Any) -> bytes:
        edit_json(checkpoint / "config.json", lambda config: config["language_config"].update(values))
        export(checkpoint, target, force=True)
        return (target / "decoder.onnx").read_bytes() + (target / "decoder.onnx.data").read_bytes()

    old = spelt(rope_theta=7777.0)
    assert spelt(rope_theta=10_000.0, rope_parameters={"rope_type": "default", "rope_theta": 7777.0}) == old
    assert spelt(rope_parameters=None) != old


@pytest.mark.parametrize("value", ["many", -2, {}, 1.5])
@pytest.mark.parametrize(
    "path",
    [
        *(("language_config", key) for key in DECODER_KEYS[2:]), ("language_config", "n_routed_experts"),
        ("language_config",), ("vision_config",), ("vision_config", "image_size"), ("vision_config", "width"),
        ("vision_config", "width", "sam_vit_b", "layers"), ("vision_config", "width", "sam_vit_b", "heads"),
        ("vision_config", "width", "sam_vit_b", "global_attn_indexes"),
        ("vision_config", "width", "sam_vit_b", "downsample_channels"),
        ("vision_config", "width", "clip-l-14-224", "heads"), ("vision_config", "width", "clip-l-14-224", "patch_size"),
    ],
    ids=lambda path: path[-1] if isinstance(path, tuple) else None,
)  # fmt: skip
def test_a_config_value_of_the_wrong_kind_is_an_export_error_and_no_crash(checkpoint, target, path, value) -> None:
    def spoil(config: dict[str, Any]) -> None:
        for name in path[:-1]:
            config = config[name]
        config[path[-1]] = value

    edit_json(checkpoint / "config.json", spoil)
    if value == {} and path[-1] in ("n_routed_experts", "language_config"):
        return  # as good as not there: a dense model, and values that stand at the top level too
    refused(checkpoint, target)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "model.safetensors.index.json"])
def test_a_damaged_json_file_is_named(checkpoint, target, name, content) -> None:
    (checkpoint / name).write_text(content)
    assert name in refused(checkpoint, target)


def test_a_missing_config_is_named(checkpoint, target) -> None:
    (checkpoint / "config.json").unlink()
    assert "config.json is missing" in refused(checkpoint, target)


def test_a_tokenizer_that_is_missing_damaged_without_image_token_or_too_large_is_refused(checkpoint, target) -> None:
    whole = (checkpoint / "tokenizer.json").read_text()
    (checkpoint / "tokenizer.json").write_text(whole.replace('"<image>"', '"<picture>"'))
    assert "no token '<image>'" in refused(checkpoint, target)
    (checkpoint / "tokenizer.json").write_text(whole[: len(whole) // 2])
    assert "tokenizer.json" in refused(checkpoint, target)
    (checkpoint / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refused(checkpoint, target)
    large = Tokenizer.from_str(whole)
    large.add_tokens([f"word{i}" for i in range(40)])
    large.save(str(checkpoint / "tokenizer.json"))
    assert "token ids up to 310 and the model only 300 rows" in refused(checkpoint, target)


def test_an_unknown_family_is_refused(checkpoint, target) -> None:
    assert "'other-ocr'; known are deepseek-ocr" in refused(checkpoint, target, family="other-ocr")


# Files that replace the source's own.


def test_other_weights_tokenizer_and_config_are_used_when_named(tmp_path, checkpoint, target) -> None:
    other = write_random_checkpoint(tmp_path / "other", TINY, seed=5)
    edit_json(other / "config.json", lambda config: config["language_config"].update(num_experts_per_tok=1))
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save(str(tmp_path / "mine.json"))
    manifest, _ = export(
        checkpoint, target, weights=other / WEIGHTS, config_file=other / "config.json",
        tokenizer_file=tmp_path / "mine.json",
    )  # fmt: skip
    manifest.verify(target)
    export(other, target.with_name("expected"))
    assert graph_bytes(target) == graph_bytes(target.with_name("expected"))
    assert (target / "config.json").read_bytes() == (other / "config.json").read_bytes()
    assert (target / "tokenizer.json").read_bytes() == (tmp_path / "mine.json").read_bytes()


# Doing it once, and doing it again.


def modified(target: Path) -> int:
    return (target / FILE_NAME).stat().st_mtime_ns


def test_a_second_run_finds_the_export_and_force_makes_it_again(checkpoint, target) -> None:
    first, _ = export(checkpoint, target)
    before = modified(target)
    again, lines = export(checkpoint, target)
    assert again == first
    assert lines == [f"{target} is there already; --force exports it again"]
    assert modified(target) == before
    _, lines = export(checkpoint, target, force=True)
    assert lines[-1].startswith(f"published {target}")
    assert modified(target) != before
    assert not leftovers(target)


def test_defaults_that_are_spelled_out_name_the_same_export(checkpoint, target) -> None:
    export(checkpoint, target, dtype="q8")
    _, lines = export(checkpoint, target, dtype="q8", vision_dtype="f16", block_size=128)
    assert lines == [f"{target} is there already; --force exports it again"]
    for change in ({"vision_dtype": "q8"}, {"block_size": 32}):
        assert "published" in export(checkpoint, target, dtype="q8", **change)[1][-1]


def test_a_report_stays_with_its_export_and_is_made_where_it_is_missing(checkpoint, target) -> None:
    export(checkpoint, target, dtype="q8")
    measured, lines = export(checkpoint, target, dtype="q8", report=True)
    assert measured.report
    assert "published" in lines[-1]
    for report in (False, True):
        again, lines = export(checkpoint, target, dtype="q8", report=report)
        assert lines == [f"{target} is there already; --force exports it again"]
        assert again.report == measured.report


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json", WEIGHTS])
def test_a_changed_source_file_is_exported_again(checkpoint, target, name) -> None:
    export(checkpoint, target)
    status = (checkpoint / name).stat()
    os.utime(checkpoint / name, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert export(checkpoint, target)[1][-1].startswith("published")


@pytest.mark.parametrize("change", [{"dtype": "f16"}, {"model_id": "other"}])
def test_another_dtype_or_model_is_not_taken_for_the_one_that_is_there(checkpoint, target, change) -> None:
    export(checkpoint, target)
    manifest, lines = export(checkpoint, target, **change)
    assert lines[-1].startswith("published")
    assert {"dtype": manifest.dtype, "model_id": manifest.id}.items() >= change.items()


def test_a_damaged_export_is_made_again(checkpoint, target) -> None:
    export(checkpoint, target)
    (target / "vision.onnx.data").write_bytes(b"")
    export(checkpoint, target)
    Manifest.load(target).verify(target)
    (target / FILE_NAME).write_text("{")
    export(checkpoint, target)
    Manifest.load(target).verify(target)


def test_a_failed_export_leaves_the_older_good_one(checkpoint, target) -> None:
    export(checkpoint, target)
    edit_tensors(checkpoint, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ExportError):
        export(checkpoint, target, force=True)
    Manifest.load(target).verify(target)
    assert not leftovers(target)


def test_an_export_whose_check_fails_leaves_the_older_good_one(checkpoint, target, monkeypatch) -> None:
    export(checkpoint, target)

    def fail(*_: object) -> None:
        raise ExportError("the decoder gives values that are not finite")

    monkeypatch.setattr(pipeline, "check_graphs", fail)
    with pytest.raises(ExportError):
        export(checkpoint, target, force=True)
    Manifest.load(target).verify(target)
    assert not leftovers(target)


def test_a_rename_that_fails_brings_the_older_export_back(checkpoint, target, monkeypatch) -> None:
    export(checkpoint, target)
    rename = Path.rename

    def fail(self: Path, other: Path) -> Path:
        if ".partial-" in self.name:
            raise PermissionError("no")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError):
        export(checkpoint, target, force=True)
    Manifest.load(target).verify(target)
    assert not leftovers(target)


def test_files_that_no_export_made_are_never_deleted(checkpoint, target) -> None:
    target.mkdir(parents=True)
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="holds files that no export made"):
        export(checkpoint, target, force=True)
    assert (target / "thesis.txt").read_text() == "years of work"
    file = target.with_name("file")
    file.write_text("mine")
    with pytest.raises(ExportError, match="is a file"):
        export(checkpoint, file)
    assert file.read_text() == "mine"


def test_an_empty_folder_may_be_the_target(checkpoint, target) -> None:
    target.mkdir(parents=True)
    export(checkpoint, target)
    Manifest.load(target)


def test_leftovers_of_a_target_with_pattern_characters_in_its_name_are_swept(checkpoint, tmp_path) -> None:
    target = tmp_path / "models" / "a[1]*"
    (target.parent / f".{target.name}.partial-abc").mkdir(parents=True)
    stranger = target.parent / ".a1x.partial-abc"
    stranger.mkdir()
    export(checkpoint, target)
    assert leftovers(target) == {stranger.name}


# Disk and memory.


def test_too_little_disk_is_said_with_both_numbers_before_any_work(checkpoint, target, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(publish.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 20_000_000))
    monkeypatch.setattr(pipeline, "write_graphs", lambda *_: pytest.fail("work was begun"))
    error = refused(checkpoint, target)
    assert "0.02 GB free" in error
    assert "needs 0.07 GB" in error  # 0.4 MB of weights and the spare 64 MiB


def test_as_much_disk_as_the_message_asks_for_is_enough(checkpoint, target, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(publish, "check_disk", lambda target, needed: asked.append(needed))
    manifest, _ = export(checkpoint, target)
    data = sum(info.size for name, info in manifest.files.items() if name.endswith(".data"))
    assert asked[0] <= data < asked[0] + publish._SPARE_BYTES


@pytest.mark.parametrize("dtype", pipeline.DTYPES)
def test_only_the_tensors_of_one_chunk_are_in_memory_at_a_time(tmp_path, target, monkeypatch, dtype) -> None:
    sizes = Sizes(**{**vars(TINY), "layers": 3, "experts": 24})
    checkpoint = write_random_checkpoint(tmp_path / "larger", sizes)
    alive, most = 0, 0
    load = Checkpoint.load

    def counted(self: Checkpoint, name: str) -> np.ndarray:
        nonlocal alive, most
        array = load(self, name)
        alive += 1
        most = max(most, alive)
        weakref.finalize(array, gone)
        return array

    def gone() -> None:
        nonlocal alive
        alive -= 1

    monkeypatch.setattr(Checkpoint, "load", counted)
    monkeypatch.setattr(pipeline, "check_graphs", lambda *_: {"cpu": "run", "cuda": "run"})
    export(checkpoint, target, dtype=dtype)
    assert alive == 0
    assert most <= 4  # query, key and value are written side by side


# Families and architectures.


def with_architectures(checkpoint: Path, folder: Path, value: Any) -> Path:
    changed = folder / "config.json"
    changed.write_text(json.dumps({**json.loads((checkpoint / "config.json").read_text()), "architectures": value}))
    return changed


@pytest.mark.parametrize(
    ("architectures", "said"),
    [
        (["DeepseekOCR2ForCausalLM"], "family 'deepseek-ocr-2', and 'deepseek-ocr' was asked for"),
        (["PaddleOCRVLForConditionalGeneration"], 'kind = "paddleocr-vl"'),
        (["DeepseekVL3ForCausalLM"], "the nearest is deepseek-ocr"),
        (["LlamaForCausalLM"], "paddleocr-vl \\(PaddleOCRVLForConditionalGeneration"),
        ([], "architectures is \\[\\]; expected a list of one name"),
        (7, "architectures is 7"),
    ],
)
def test_an_architecture_of_another_family_is_answered_with_the_families(
    checkpoint: Path, target: Path, tmp_path: Path, architectures: Any, said: str
) -> None:
    with pytest.raises(ExportError, match=said):
        export(checkpoint, target, config_file=with_architectures(checkpoint, tmp_path, architectures))
    assert not target.exists()


def test_a_config_that_names_no_architecture_is_taken_for_what_was_asked(
    checkpoint: Path, target: Path, tmp_path: Path
) -> None:
    export(checkpoint, target, config_file=with_architectures(checkpoint, tmp_path, None))
    assert Manifest.load(target).family == "deepseek-ocr"


def test_a_family_without_an_exporter_is_answered_with_those_that_have_one(checkpoint: Path, target: Path) -> None:
    with pytest.raises(ExportError, match=r"'hunyuan-ocr'; known are deepseek-ocr, .*paddleocr-vl"):
        export(checkpoint, target, family="hunyuan-ocr")


# Killed at any moment.

# Runs the command line and, at one moment, says so and waits for a line on standard input.
HELD = """
import pathlib, shutil, sys
from export import cli, pipeline, publish, weights

def hold(*_):
    print("held", flush=True)
    sys.stdin.readline()

def before(function):
    return lambda *args: (hold(), function(*args))[1]

add, rename, rmtree, count = weights.DataFile.add, pathlib.Path.rename, shutil.rmtree, 0

def held_add(*args):
    global count
    count += 1
    if count == 40:
        hold()
    return add(*args)

def held_rename(path, other):
    rename(path, other)
    if str(other).endswith(".retired"):
        hold()

def held_rmtree(path, **options):
    if str(path).endswith(".retired"):
        hold()
    rmtree(path, **options)

moment = sys.argv.pop(1)
if moment == "writing":
    weights.DataFile.add = held_add
elif moment == "checking":
    pipeline.check_graphs = before(pipeline.check_graphs)
elif moment == "flushing":
    publish._sync = before(publish._sync)
elif moment == "swap half done":
    pathlib.Path.rename = held_rename
elif moment == "swapped":
    publish.shutil.rmtree = held_rmtree
sys.exit(cli.main())
"""


@pytest.fixture
def start(tmp_path: Path, target: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a real exporter, ``moment`` says where it is to be held (None: nowhere)."""
    running: list[subprocess.Popen[str]] = []

    def launch(checkpoint: Path, moment: str | None = None) -> subprocess.Popen[str]:
        program = ["-m", "export"] if moment is None else ["-c", HELD, moment]
        arguments = ["deepseek-ocr", "--source", str(checkpoint), "--output", str(target), "--dtype", "f32"]
        process = subprocess.Popen(
            [sys.executable, *program, *arguments, "--config", str(tmp_path / "config.toml"), "--init-config"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        return process

    yield launch
    for process in running:
        process.kill()
        process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)


@pytest.mark.parametrize("moment", ["writing", "checking", "flushing", "swap half done", "swapped"])
def test_killed_at_any_moment_a_good_export_serves_and_the_next_run_starts_clean(
    tmp_path, checkpoint, target, start, moment
) -> None:
    older, _ = export(checkpoint, target, model_id="deepseek-ocr")
    newer = write_random_checkpoint(tmp_path / "newer", TINY, seed=1)
    process = start(newer, moment)
    assert process.stdout.readline() == "held\n", process.stderr.read()
    kill(process)
    assert leftovers(target)
    serving = Manifest.load(target)
    serving.verify(target)
    assert (serving == older) is (moment != "swapped")
    manifest, _ = export(newer, target, model_id="deepseek-ocr")
    manifest.verify(target)
    assert manifest.source.name == str(newer)
    assert not leftovers(target)


def test_killed_without_an_older_export_nothing_is_there_until_the_next_run(checkpoint, target, start) -> None:
    process = start(checkpoint, "checking")
    assert process.stdout.readline() == "held\n", process.stderr.read()
    kill(process)
    with pytest.raises(ManifestError, match="is missing"):
        Manifest.load(target)
    export(checkpoint, target)
    Manifest.load(target).verify(target)
    assert not leftovers(target)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_an_unchanged_exporter_killed_while_it_writes_leaves_nothing_that_the_next_run_cannot_sweep(
    tmp_path, target, start, share
) -> None:
    """share: of the data that is written when the signal comes."""
    sizes = Sizes(
        **{**vars(TINY), "layers": 3, "experts": 48, "hidden": 256, "heads": 4, "kv_heads": 4, "expert_mlp": 256}
    )
    large = write_random_checkpoint(tmp_path / "large", sizes)
    total = 2 * sum(file.stat().st_size for file in large.glob("*.safetensors"))
    process = start(large)
    deadline = time.monotonic() + PATIENCE
    written = -1
    while written < share * total and process.poll() is None and time.monotonic() < deadline:
        partial = [file for folder in target.parent.glob(".*.partial-*") for file in _files(folder)]
        written = sum(partial) if partial else -1
        time.sleep(0.001)
    kill(process)
    assert written >= share * total, process.stderr.read()
    export(large, target)
    Manifest.load(target).verify(target)
    assert not leftovers(target)


def _files(folder: Path) -> list[int]:
    """Sizes of the files in a folder that somebody else is writing."""
    try:
        return [file.stat().st_size for file in folder.iterdir()]
    except FileNotFoundError:  # just renamed
        return []


def test_a_swap_cut_off_between_its_renames_is_undone_by_the_next_run(checkpoint, target) -> None:
    first, _ = export(checkpoint, target)
    target.rename(retired_folder(target))
    again, lines = export(checkpoint, target)
    assert again == first
    assert "is there already" in lines[-1]
    assert not leftovers(target)


def test_a_swap_cut_off_after_its_renames_is_finished_by_the_next_run(checkpoint, target) -> None:
    export(checkpoint, target)
    shutil.copytree(target, retired_folder(target))
    assert "is there already" in export(checkpoint, target)[1][-1]
    assert not leftovers(target)


def test_of_two_exports_at_once_the_second_says_that_it_waits_and_both_succeed(checkpoint, target, start) -> None:
    first = start(checkpoint, "writing")
    assert first.stdout.readline() == "held\n", first.stderr.read()
    second = start(checkpoint)
    line = second.stderr.readline()
    assert line == f"another export is writing {target}; waiting for it to finish\n"
    assert not target.exists()
    _, errors = first.communicate("\n", PATIENCE)
    assert first.returncode == 0, errors
    _, errors = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, errors
    assert "is there already" in errors
    Manifest.load(target).verify(target)
    assert not leftovers(target)


def test_the_second_exports_itself_when_the_first_is_killed(checkpoint, target, start) -> None:
    first = start(checkpoint, "writing")
    assert first.stdout.readline() == "held\n", first.stderr.read()
    second = start(checkpoint)
    assert "waiting" in second.stderr.readline()
    kill(first)
    _, errors = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, errors
    assert f"published {target}" in errors
    Manifest.load(target).verify(target)
    assert not leftovers(target)
