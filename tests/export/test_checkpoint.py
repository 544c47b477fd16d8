"""Reading a checkpoint: lazily, one tensor at a time, and with errors that name tensor, shapes and file."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from export.checkpoint import Checkpoint
from export.export_errors import ExportError
from export.json_files import read_json
from export.weights import DataFile, Recipe, Weight, convert, copied, expert_down, expert_gate_up, transposed

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of three tensors in two shards."""
    shards = {
        "model-1.safetensors": {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, ml_dtypes.bfloat16)},
        "model-2.safetensors": {"c": np.full((2, 2), 7, np.float16)},
    }
    for file, tensors in shards.items():
        save_file(tensors, tmp_path / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    return tmp_path


EXPECTED = {"a": (2, 3), "b": (4,), "c": (2, 2)}


def test_tensors_of_all_shards_are_found_and_read_in_their_stored_types(folder) -> None:
    checkpoint = Checkpoint(folder)
    checkpoint.check(EXPECTED)
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == EXPECTED
    assert checkpoint.parameter_count == 6 + 4 + 4
    assert checkpoint.config == {"hidden_size": 3}
    assert [checkpoint.load(name).dtype for name in "abc"] == [np.float32, ml_dtypes.bfloat16, np.float16]
    np.testing.assert_array_equal(checkpoint.load("a"), np.arange(6).reshape(2, 3))


def test_a_single_file_needs_no_index(tmp_path) -> None:
    save_file({"a": np.zeros((2, 3), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    Checkpoint(tmp_path).check({"a": (2, 3)})


def test_every_problem_is_listed_with_tensor_both_shapes_and_file(folder) -> None:
    save_file({"c": np.ones((2, 5), np.float16), "ids": np.arange(3)}, folder / "model-2.safetensors")
    with pytest.raises(ExportError) as caught:
        Checkpoint(folder).check({"a": (2, 3), "c": (2, 2), "ids": (3,), "lm_head.weight": (9, 3)})
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert sorted(lines) == [
        "missing: lm_head.weight, expected [9, 3]",
        "unexpected: b [4] in model-1.safetensors",
        "wrong shape: c is [2, 5] in model-2.safetensors, expected [2, 2]",
        "wrong type: ids is I64 in model-2.safetensors, expected one of ['BF16', 'F16', 'F32', 'F64']",
    ]
    assert str(folder) in str(caught.value)
    assert "config.json" in str(caught.value)


def test_a_very_long_list_of_problems_is_cut_and_counted(folder) -> None:
    with pytest.raises(ExportError, match=r"\.\.\. and 33 more"):
        Checkpoint(folder).check({f"t{i}": (1,) for i in range(50)})


def test_a_very_long_list_of_problems_shows_what_is_there_beside_what_is_missing(folder) -> None:
    with pytest.raises(ExportError) as caught:
        Checkpoint(folder).check({f"t{i}": (1,) for i in range(50)})
    shown = str(caught.value).splitlines()[1:-1]
    assert len(shown) == 20
    assert [line.split(":")[0].strip() for line in shown].count("unexpected") == 3


def test_tensors_that_are_known_to_be_unused_may_be_there(folder) -> None:
    Checkpoint(folder).check({"a": (2, 3), "b": (4,)}, unused=("c",))


def test_a_shard_that_the_index_names_and_the_folder_lacks_is_named(folder) -> None:
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ExportError, match=r"lacks model-2\.safetensors, which its index names; finish the download"):
        Checkpoint(folder)


@pytest.mark.parametrize("left", [0, 4, 8, 20, -9, -1])
def test_a_truncated_file_is_named(folder, left) -> None:
    file = folder / "model-1.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ExportError, match=r"model-1\.safetensors is no complete safetensors file .*download it again"):
        Checkpoint(folder)


def test_a_file_that_vanishes_after_opening_is_named_with_the_tensor(folder) -> None:
    checkpoint = Checkpoint(folder)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ExportError, match=r"cannot read c from .*model-2\.safetensors"):
        checkpoint.load("c")


def test_a_tensor_in_two_files_is_named_with_both(folder) -> None:
    (folder / INDEX).unlink()
    save_file({"a": np.zeros(1, np.float32)}, folder / "extra.safetensors")
    with pytest.raises(ExportError, match=r"a stands in both .*extra\.safetensors and .*model-1\.safetensors"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
)
def test_a_damaged_index_is_named(folder, index) -> None:
    (folder / INDEX).write_text(index)
    with pytest.raises(ExportError, match=INDEX.replace(".", r"\.")):
        Checkpoint(folder)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"null", b"\xff\xff"])
def test_a_missing_or_damaged_config_is_named(folder, content) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    with pytest.raises(ExportError, match=r"config\.json"):
        Checkpoint(folder)
    with pytest.raises(ExportError, match=r"config\.json"):
        read_json(folder / "config.json")


def test_a_folder_without_weights_says_what_it_wants(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ExportError, match=r"holds no \*\.safetensors file"):
        Checkpoint(tmp_path)


def test_named_files_replace_the_folders_own(folder, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    save_file({"z": np.zeros(1, np.float32)}, other / "tuned.safetensors")
    (other / "my.json").write_text('{"mine": 1}')
    for weights in (other, other / "tuned.safetensors"):
        checkpoint = Checkpoint(folder, config_file=other / "my.json", weights=weights)
        assert set(checkpoint.tensors) == {"z"}
        assert checkpoint.config == {"mine": 1}
    with pytest.raises(ExportError, match="missing-folder"):
        Checkpoint(folder, weights=other / "missing-folder")
    with pytest.raises(ExportError, match=r"missing\.json"):
        Checkpoint(folder, config_file=other / "missing.json")


# Weights on their way into a data file.


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("turned", [False, True])
def test_bfloat16_is_converted_exactly_as_numpy_does(dtype, turned) -> None:
    values = np.random.default_rng(0).standard_normal((50, 70)).astype(ml_dtypes.bfloat16)
    values[0, :3] = [0.0, -0.0, 65280.0]
    values = values.T if turned else values
    result = convert(values, np.dtype(dtype), "x")
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, values.astype(np.float32).astype(dtype))


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_name(stored, value) -> None:
    array = np.zeros((3, 3), stored)
    array[1, 2] = value
    for dtype in (np.float16, np.float32):
        with pytest.raises(ExportError, match=r"model\.x has values that are not finite.*damaged"):
            convert(array, np.dtype(dtype), "model.x")


def test_a_value_beyond_float16_is_refused_by_name_with_its_size_and_the_remedy() -> None:
    for stored in (ml_dtypes.bfloat16, np.float32):
        array = np.array([1.0, -131072.0], stored)
        with pytest.raises(ExportError, match=r"model\.x has values that float16 cannot hold.*131072.*--dtype f32"):
            convert(array, np.dtype(np.float16), "model.x")
        np.testing.assert_array_equal(convert(array, np.dtype(np.float32), "model.x"), [1.0, -131072.0])


RECIPES = {
    "copied": (copied("m.a", (4, 6)), (4, 6), lambda t: t["m.a"]),
    "one turned": (transposed(["m.a"], [4], 6), (6, 4), lambda t: t["m.a"].T),
    "three turned": (
        transposed(["m.a", "m.b", "m.c"], [4, 2, 3], 6), (6, 9),
        lambda t: np.concatenate([t["m.a"], t["m.b"], t["m.c"]]).T,
    ),
    "gate and up": (
        expert_gate_up("m.experts", 3, 5, 6), (3, 10, 6),
        lambda t: np.stack([
            [t[f"m.experts.{i}.{'up' if row % 2 else 'gate'}_proj.weight"][row // 2] for row in range(10)]
            for i in range(3)
        ]),
    ),
    "down": (
        expert_down("m.experts", 3, 5, 6), (3, 6, 5),
        lambda t: np.stack([t[f"m.experts.{i}.down_proj.weight"] for i in range(3)]),
    ),
}  # fmt: skip


def tensors_for(recipe: Recipe) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {name: random.standard_normal(shape).astype(ml_dtypes.bfloat16) for name, shape in recipe.sources.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_writes_the_parameter_that_its_name_says(tmp_path, name) -> None:
    recipe, shape, expected = RECIPES[name]
    tensors = tensors_for(recipe)
    with DataFile(tmp_path / "data") as data:
        data.add("p", Weight(shape, recipe), tensors.__getitem__)
    stored = data.stored["p"]
    raw = (tmp_path / "data").read_bytes()[stored.offset : stored.offset + stored.length]
    np.testing.assert_array_equal(np.frombuffer(raw, np.float32).reshape(shape), expected(tensors).astype(np.float32))


@pytest.mark.parametrize("name", RECIPES)
def test_a_bad_value_names_the_checkpoints_tensor_whatever_the_recipe(tmp_path, name) -> None:
    recipe, shape, _ = RECIPES[name]
    tensors = tensors_for(recipe)
    last = list(tensors)[-1]
    tensors[last][-1, -1] = np.nan
    with DataFile(tmp_path / "data") as data, pytest.raises(ExportError, match=last.replace(".", r"\.")):
        data.add("graph.parameter", Weight(shape, recipe), tensors.__getitem__)


def test_the_hash_and_the_offsets_of_a_data_file_are_true(tmp_path) -> None:
    import hashlib

    big, small = np.ones((1024, 300), np.float32), np.arange(5, dtype=np.float32)
    with DataFile(tmp_path / "data") as data:
        for i, array in enumerate((small, big, small, big)):
            data.add(f"p{i}", Weight(array.shape, copied("x", array.shape)), lambda name, array=array: array)
    raw = (tmp_path / "data").read_bytes()
    assert data.sha256 == hashlib.sha256(raw).hexdigest()
    for i, array in enumerate((small, big, small, big)):
        stored = data.stored[f"p{i}"]
        assert raw[stored.offset : stored.offset + stored.length] == array.tobytes()
        assert stored.offset % (65536 if array is big else 64) == 0  # so that every system can map it
