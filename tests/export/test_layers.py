"""Layers that families share: several matrices of a checkpoint as one product, with their biases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from export.decoder import DecoderSpec
from export.export_errors import ExportError
from export.graph_ends import new_graph
from export.layers import FLOAT, FLOAT16, Precision, linear
from export.quantize import Blocks
from export.weights import DataFile, weights_of
from models.processor import session_entries

INPUTS, OUTPUTS = 64, (48, 16, 16)

PRECISIONS = {
    "f32": (Precision(FLOAT, FLOAT), 1e-5),
    "f16": (Precision(FLOAT16, FLOAT), 2e-3),
    "q8": (Precision(FLOAT16, FLOAT, Blocks(8, 32)), 3e-2),
    "q4": (Precision(FLOAT16, FLOAT, Blocks(4, 32)), 3e-1),
    "channels": (Precision(FLOAT16, FLOAT, channels=True), 5e-2),
}


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("name", PRECISIONS)
def test_packed_matrices_bring_their_biases_in_order(name: str, normed: bool, tmp_path: Path) -> None:
    precision, tolerance = PRECISIONS[name]
    rng = np.random.default_rng(0)
    tensors = {}
    for at, width in zip("qkv", OUTPUTS, strict=True):
        tensors[f"{at}_proj.weight"] = rng.standard_normal((width, INPUTS), np.float32) / INPUTS**0.5
        tensors[f"{at}_proj.bias"] = 3 * rng.standard_normal(width, np.float32)
    layer = linear([f"{at}_proj" for at in "qkv"], INPUTS, OUTPUTS, precision, bias=True, normed=normed)
    builder = new_graph("layer")
    x = builder.input("x", FLOAT, ["rows", INPUTS])
    y = layer(builder.op, x)
    y.name, y.type, y.shape = "y", ir.TensorType(FLOAT), ir.Shape(["rows", sum(OUTPUTS)])
    builder.graph.outputs.append(y)
    with DataFile(tmp_path / "layer.data") as data:
        for key, weight in weights_of(layer).items():
            data.add(key, weight, tensors.__getitem__)
    for key, weight in weights_of(layer).items():
        weight.const_value = data.tensor(key)
    ir.save(ir.Model(builder.graph, ir_version=10), tmp_path / "layer.onnx")
    options = ort.SessionOptions()
    for entry in session_entries().items():
        options.add_session_config_entry(*entry)
    session = ort.InferenceSession(tmp_path / "layer.onnx", options, providers=["CPUExecutionProvider"])
    rows = rng.standard_normal((5, INPUTS), np.float32)
    (ours,) = session.run(None, {"x": rows})
    weights = np.concatenate([tensors[f"{at}_proj.weight"] for at in "qkv"])
    expected = rows @ weights.T + np.concatenate([tensors[f"{at}_proj.bias"] for at in "qkv"])
    assert np.abs(ours - expected).max() < tolerance * np.abs(expected).max()


def test_a_window_without_positions_from_the_host_is_refused_by_name() -> None:
    with pytest.raises(ExportError, match="window"):
        DecoderSpec(
            hidden=64, layers=1, heads=1, kv_heads=1, head_dim=64, mlp_width=64, dense_layers=1, moe=None,
            vocabulary=100, max_length=64, rope_theta=1e4, rms_epsilon=1e-6, window=128,
        )  # fmt: skip
