"""8-bit vision towers: one scale for each output channel, activations in 8 bits too."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from export import layers
from export.graph_ends import new_graph
from export.layers import FLOAT, Precision, linear
from export.pipeline import Job, export_model
from export.quantize import dequantize_channels, quantize_channels
from export.source import Source
from models.processor import session_entries
from models.registry import family_of
from runtime.providers import find_device, ort
from runtime.vision import VisionTower
from tests.export.jobs import rewritten
from tools.checkpoints import Sizes, write_random_checkpoint
from tools.reference import image_features, load_reference

INPUTS, OUTPUTS, ROWS = 96, 160, 300


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def gaussian(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def run_layer(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, normed: bool) -> np.ndarray:
    """One Int8Linear on the CPU provider; x [rows, in], weight [out, in], bias [out]."""
    layer = linear("at", INPUTS, OUTPUTS, Precision(FLOAT, FLOAT, channels=True), bias=True, normed=normed)
    builder = new_graph("layer")
    y = layer(builder.op, builder.input("x", FLOAT, ["rows", INPUTS]))
    y.name, y.type, y.shape = "y", ir.TensorType(FLOAT), ir.Shape(["rows", OUTPUTS])
    builder.graph.outputs.append(y)
    tensors = {"at.weight": weight, "at.bias": bias}
    for value in builder.graph.initializers.values():
        chunks = value.recipe.chunks(tensors.__getitem__)
        made = np.concatenate([np.ravel(one[value.part] if isinstance(one, tuple) else one) for one in chunks])
        value.const_value = ir.tensor(made.reshape(value.sizes))
    model = ir.serde.serialize_model(ir.Model(builder.graph, ir_version=10)).SerializeToString()
    options = ort.SessionOptions()
    for key, value in session_entries().items():  # as the runtime has it
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(model, options).run(None, {"x": x})[0]


@pytest.mark.parametrize("normed", [True, False])
def test_the_product_of_gaussian_data_is_right_to_two_per_cent(normed) -> None:
    x, weight, bias = gaussian(ROWS, INPUTS), gaussian(OUTPUTS, INPUTS), gaussian(OUTPUTS)
    assert relative(run_layer(x, weight, bias, normed=normed), x @ weight.T + bias) < 0.02


@pytest.mark.parametrize("normed", [True, False])
def test_outlier_channels_with_small_weights_do_not_drown_the_others(normed) -> None:
    x, weight, bias = gaussian(ROWS, INPUTS), gaussian(OUTPUTS, INPUTS), gaussian(OUTPUTS)
    outliers = [3, 40, 77]
    x[:, outliers] *= 50
    weight[:, outliers] /= 50
    assert relative(run_layer(x, weight, bias, normed=normed), x @ weight.T + bias) < 0.05


def test_rows_of_very_different_sizes_keep_their_own_precision() -> None:
    x, weight = gaussian(ROWS, INPUTS), gaussian(OUTPUTS, INPUTS)
    x *= np.geomspace(1e-3, 1e3, ROWS, dtype=np.float32)[:, None]
    x[7] = 0
    y = run_layer(x, weight, np.zeros(OUTPUTS, np.float32), normed=False)
    assert not y[7].any()
    rows = [row for row in range(ROWS) if row != 7]
    assert max(relative(y[row], x[row] @ weight.T) for row in rows) < 0.05


def test_channels_without_weights_are_no_division_by_zero() -> None:
    weight = gaussian(OUTPUTS, INPUTS)
    weight[5], weight[:, 9] = 0, 0
    values, scales, importance = quantize_channels(weight)
    restored = dequantize_channels(values, scales, importance)
    assert not restored[5].any()
    assert not restored[:, 9].any()
    assert relative(restored, weight) < 0.01


def test_graph_computes_exactly_what_the_rounded_weights_say(tmp_path, monkeypatch, picture) -> None:
    """With float activations; the reference is transformers on the rounded weights."""
    monkeypatch.setattr(layers.Int8Linear, "INTEGER_ON", None)  # no provider multiplies integers
    # Told to be exact, ONNX Runtime (1.31.1) rewrites int8 weights as uint8 with a zero point that DequantizeLinear,
    # which only this graph has on a CPU, refuses; there are no 8-bit products here to be exact about.
    monkeypatch.setattr("runtime.providers.session_entries", dict)
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", Sizes())
    features, pixels = read(checkpoint, tmp_path / "export", picture(300, 300))
    reference = load_reference(rounded(checkpoint, tmp_path / "rounded"))
    expected = image_features(reference, pixels, None, (1, 1))
    # Norms and biases of the tower are stored in float16.
    assert np.abs(features - expected).max() / np.abs(expected).max() < 2e-3


def test_features_of_the_8_bit_tower_point_the_same_way_as_those_in_float(tmp_path, picture) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", Sizes())
    features, pixels = read(checkpoint, tmp_path / "export", picture(300, 300))
    expected = image_features(load_reference(checkpoint), pixels, None, (1, 1))
    cosine = float((features * expected).sum() / np.linalg.norm(features) / np.linalg.norm(expected))
    assert cosine > 0.995


def read(checkpoint: Path, folder: Path, image) -> tuple[np.ndarray, np.ndarray]:
    """Export with an 8-bit tower and encode one image: its features and its pixel values."""
    source = Source(checkpoint, str(checkpoint), None, "directory")
    manifest = export_model(
        Job("deepseek-ocr", "deepseek-ocr", source, "q8", folder, vision_dtype="q8"), lambda line: None
    )
    prepared = family_of(manifest).prepare_image(image, {})
    passes = [make() for make in prepared.passes]
    vision = VisionTower(folder, manifest, find_device("cpu"))
    return prepared.assemble([vision.encode(feeds) for feeds in passes]), passes[0]["pixel_values"]


def rounded(source: Path, target: Path) -> Path:
    """The checkpoint with every matrix of the tower that is quantised replaced by its rounded values, in float32."""
    matrix = re.compile(r"model\.(sam_model|vision_model|projector).*(qkv|proj|lin\d|fc\d|layers)\.weight$")

    def value(name: str, weight: np.ndarray) -> np.ndarray:
        is_quantised = weight.ndim == 2 and matrix.search(name)
        return dequantize_channels(*quantize_channels(weight)) if is_quantised else weight

    return rewritten(source, target, value)
