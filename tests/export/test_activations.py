"""The report's largest activations are those that the reference computes, layer by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from export.activations import WARN_OVER, Watched, warnings_of
from export.checkpoint import Checkpoint
from export.deepseek_ocr import DeepseekOcrExport
from export.divergence import Divergence
from export.hub import Source
from export.pipeline import Job, export_model
from models.manifest import Manifest
from tools.checkpoints import Sizes, write_random_checkpoint
from tools.reference import embed, load_reference

WEIGHTS = "model-00001-of-000001.safetensors"


def exported(checkpoint: Path, folder: Path) -> tuple[Manifest, list[str]]:
    lines: list[str] = []
    source = Source(checkpoint, str(checkpoint), None, "directory")
    return export_model(Job("m", "deepseek-ocr", source, "f16", folder, report=True), lines.append), lines


def test_layers_are_told_with_what_the_reference_computes_in_them(tmp_path) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", Sizes(layers=3))
    manifest, lines = exported(checkpoint, tmp_path / "f16")
    found = manifest.report["largest_activations"]
    assert set(found) == {"vision tower", "decoder"}
    assert set(found["decoder"]) == {"0", "1", "2", "other"}
    assert not any(line.startswith("WARNING") for line in lines)
    # The stream behind the second layer, on the pages of the report, by transformers' own modules.
    compared = Divergence(
        tmp_path / "f16", manifest, DeepseekOcrExport(Checkpoint(checkpoint), {}), Checkpoint(checkpoint), tmp_path
    )
    import torch

    reference = load_reference(checkpoint)
    largest = 0.0
    for page in compared.pages:
        ids = [*page.prompt_ids, *page.answer_ids]
        embeddings = embed(reference, ids).copy()
        assert embeddings.shape[1] == manifest.sizes.hidden_size
        with torch.no_grad():
            out = reference(inputs_embeds=torch.from_numpy(embeddings)[None], output_hidden_states=True)
        largest = max(largest, float(np.abs(out.hidden_states[1].numpy()).max()))
    # Images' features take the place of their slots' embeddings here, so the values are of a size and not the same.
    assert 0.2 < found["decoder"]["1"] / largest < 5


def test_a_checkpoint_that_float16_will_not_hold_is_named_before_users_find_out(tmp_path) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", Sizes(layers=2))
    tensors = load_file(checkpoint / WEIGHTS)
    name = "model.layers.1.self_attn.o_proj.weight"
    tensors[name] = tensors[name] * tensors[name].dtype.type(1e5)
    save_file(tensors, checkpoint / WEIGHTS)
    manifest, lines = exported(checkpoint, tmp_path / "f16")
    by_layer = manifest.report["largest_activations"]["decoder"]
    assert by_layer["1"] > WARN_OVER > by_layer["0"]
    assert any("WARNING: decoder: activations over 30,000 in layers 1" in line and "bf16" in line for line in lines)


def test_values_are_those_of_each_layer_over_all_runs(tmp_path) -> None:
    random = np.random.default_rng(0)
    first, second = (random.normal(size=(4, 4)).astype(np.float32) for _ in range(2))
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], name="model/layers.0/mlp/MatMul_0"),
        helper.make_node("MatMul", ["h", "second"], ["y"], name="model/layers.11/mlp/MatMul_1"),
    ]
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])
    weights = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]
    graph = helper.make_graph(nodes, "g", [shape], [output], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "g.onnx")
    watched = Watched(tmp_path / "g.onnx")
    assert [one.name for one in watched.get_outputs()] == ["y"]
    inputs = [random.normal(size=(2, 4)).astype(np.float32) for _ in range(3)]
    for x in inputs:
        (found,) = watched.run(None, {"x": x})
        np.testing.assert_allclose(found, x @ first @ second, rtol=1e-4, atol=1e-5)
    assert watched.largest["0"] == pytest.approx(max(np.abs(x @ first).max() for x in inputs), rel=1e-5)
    assert watched.largest["11"] == pytest.approx(max(np.abs(x @ first @ second).max() for x in inputs), rel=1e-5)
    watched.run(None, {"x": np.full((2, 4), np.nan, np.float32)})
    assert np.isnan(watched.largest["0"])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_is_warned_of_too(value) -> None:
    assert any(line.startswith("WARNING") for line in warnings_of({"decoder": {"0": 1.0, "1": value}}))
