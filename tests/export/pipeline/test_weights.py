"""Weights that do not fit publish nothing; disk and memory that an export takes are bounded and said before."""

from __future__ import annotations

import weakref
from collections import namedtuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from export import pipeline, publish
from export.checkpoint import Checkpoint
from tests.export.jobs import TINY, WEIGHTS, edit_tensors, export, refused
from tools.checkpoints import Sizes, write_random_checkpoint

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
    assert asked[0] <= data < asked[0] + publish.SPARE_BYTES


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
