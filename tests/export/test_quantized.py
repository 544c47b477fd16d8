"""Quantised exports: the rounding itself, and graphs that compute exactly what the rounded weights say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from export import layers
from export.pipeline import Job, export_model
from export.quantize import Blocks, dequantize, quantize, quantize_channels
from export.source import Source
from export.weights import DataFile, weights_of
from models.manifest import Manifest
from runtime.decoder import Decoder
from runtime.providers import find_device
from tests.export.jobs import rewritten
from tools.checkpoints import Sizes, write_random_checkpoint
from tools.reference import embed, greedy_logits, load_reference

SIZES = Sizes(layers=3, experts=8, top_k=3)


WEIGHTS = st_numpy.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 70)), elements=st.floats(-100, 100, width=32)
)


@settings(deadline=None)
@given(weight=WEIGHTS, size=st.sampled_from([16, 32, 64]))
def test_8_bits_restore_every_value_to_within_one_step_of_its_block(weight, size) -> None:
    blocks = Blocks(8, size)
    channels = weight.shape[1]
    values, scales = quantize(weight, blocks)
    assert values.shape == (len(weight), blocks.row_bytes(channels))
    assert scales.shape == (len(weight), blocks.count(channels))
    restored = dequantize(values, scales, blocks, channels)
    steps = np.repeat(np.abs(scales.astype(np.float32)), size, axis=1)[:, :channels]
    # Half a step by rounding, up to a whole one at the end of the range that has one value less, and float16's error of
    # the scale over the whole range.
    assert (np.abs(restored - weight) <= steps * (1 + 128 / 1024) + 1e-5).all()


@settings(deadline=None)
@given(weight=WEIGHTS, size=st.sampled_from([16, 32, 64]))
@example(weight=np.array([[1, -1, 1, 1, 1, 1]], np.float32), size=16)
@example(weight=np.array([[-1, 1, -1, -1, -1, -1]], np.float32), size=16)
def test_4_bits_are_never_worse_than_rounding_over_the_whole_range(weight, size) -> None:
    blocks = Blocks(4, size)
    rows, channels = weight.shape
    values, scales = quantize(weight, blocks)
    assert values.shape == (rows, blocks.row_bytes(channels))
    assert scales.shape == (rows, blocks.count(channels))
    restored = dequantize(values, scales, blocks, channels)
    padded = np.zeros((rows, blocks.count(channels) * size))
    padded[:, :channels] = weight
    for row in range(rows):
        for block, start in enumerate(range(0, padded.shape[1], size)):
            part = padded[row, start : start + size]
            step = np.float16(part[np.abs(part).argmax()] / -8).astype(float)
            plain = np.clip(np.rint(part / step), -8, 7) * step if step else np.zeros(size)
            ours = np.square(restored[row, start : start + size] - weight[row, start : start + size]).sum()
            allowed = np.square(part - plain).sum()
            # float16's rounding of the fitted scale, and float32's of the sums
            slack = 1e-5 + (np.float32(2**-11) * np.abs(part).max()) ** 2 * size
            assert ours <= allowed * 1.001 + slack, (row, block)


def test_values_on_the_grid_are_restored_exactly() -> None:
    grid = np.arange(-8, 8, dtype=np.float32).repeat(2)[None] * np.float32(0.25)
    values, scales = quantize(grid, Blocks(4, 32))
    assert np.array_equal(dequantize(values, scales, Blocks(4, 32), 32), grid)
    assert values[0, 0] == 0x00
    assert values[0, -1] == 0xFF


def test_a_block_of_zeros_stays_zero() -> None:
    values, scales = quantize(np.zeros((2, 32), np.float32), Blocks(8, 32))
    assert not dequantize(values, scales, Blocks(8, 32), 32).any()


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.008), (4, 0.11)])
def test_error_on_gaussian_weights_is_what_the_bits_allow(bits, limit) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    restored = dequantize(*quantize(weight, Blocks(bits, 64)), Blocks(bits, 64), 1024)
    assert np.linalg.norm(restored - weight) / np.linalg.norm(weight) < limit


def rounded_checkpoint(source: Path, target: Path, decoder: Blocks) -> Path:
    """The same checkpoint with every matrix that the export quantises replaced by its rounded values, in float32."""
    # The widths by which the export fits its blocks to rows: those of one product for the experts.
    expert_channels = (SIZES.hidden, SIZES.expert_mlp)

    def value(name: str, weight: np.ndarray) -> np.ndarray:
        if re.search(r"mlp\.experts\.", name):
            blocks = decoder.fitting(*expert_channels)
        elif name == "model.embed_tokens.weight" or re.search(r"model\.layers\..*_proj\.weight|lm_head", name):
            blocks = decoder.fitting(weight.shape[1])
        else:
            return weight
        return dequantize(*quantize(weight, blocks), blocks, weight.shape[1])

    return rewritten(source, target, value)


@pytest.mark.parametrize(("dtype", "bits"), [("q8", 8), ("q4", 4)])
def test_graphs_compute_exactly_what_the_rounded_weights_say(tmp_path, monkeypatch, dtype, bits) -> None:
    """With float activations; routing weights included, which QMoE renormalises unless it is handed them."""
    monkeypatch.setenv("ORT_QMOE_CPU_QNBIT_GEMM", "fp32")
    monkeypatch.setattr(layers.QuantizedLinear, "ACCURACY_LEVEL", 0)
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", SIZES)
    folder = tmp_path / dtype
    source = Source(checkpoint, str(checkpoint), None, "directory")
    export_model(Job("deepseek-ocr", "deepseek-ocr", source, dtype, folder, block_size=32), lambda line: None)
    rounded = rounded_checkpoint(checkpoint, tmp_path / "rounded", Blocks(bits, 32))
    reference = load_reference(rounded)
    manifest = Manifest.load(folder)
    prompt_ids = [0, *range(3, 60)]
    decoder = Decoder(folder, manifest, find_device("cpu"), slots=1)
    assert np.abs(decoder.embed(prompt_ids) - embed(reference, prompt_ids)).max() < 1e-5
    expected, tokens = greedy_logits(reference, embed(reference, prompt_ids), 8, manifest.sizes.vocabulary)
    logits = [decoder.prefill(0, decoder.embed(prompt_ids))]
    for i, token in enumerate(tokens[:-1]):
        logits.append(decoder.step([token], [len(prompt_ids) + i])[0].copy())
    # 1e-4 where every weight is exact; norms are kept in float16 (bfloat16 values near 1 fit it exactly).
    assert np.abs(np.stack(logits) - expected).max() / np.abs(expected).max() < 1e-4


@pytest.mark.parametrize(("dtype", "limit"), [("q8", 0.06), ("q4", 0.6)])
def test_the_fast_int8_kernels_stay_near_the_float_model(tmp_path, random_checkpoint, dtype, limit) -> None:
    folder = tmp_path / dtype
    source = Source(random_checkpoint, str(random_checkpoint), None, "directory")
    manifest = export_model(Job("deepseek-ocr", "deepseek-ocr", source, dtype, folder, report=True), lambda line: None)
    reference = load_reference(random_checkpoint)
    prompt_ids = [0, *range(3, 60)]
    decoder = Decoder(folder, manifest, find_device("cpu"), slots=1)
    expected, _ = greedy_logits(reference, embed(reference, prompt_ids), 0, manifest.sizes.vocabulary)
    logits = decoder.prefill(0, decoder.embed(prompt_ids))
    assert np.linalg.norm(logits - expected[0]) / np.linalg.norm(expected[0]) < limit
    errors = manifest.report["relative_weight_errors"]
    assert len(errors) == 2 + 4 + 2 * 6  # embedding and head; one dense layer of 4 products; two of 6
    assert all(0 < error < (0.01 if dtype == "q8" else 0.12) for error in errors.values())


def test_norms_and_the_router_gate_stay_in_float(tmp_path, random_checkpoint) -> None:
    import onnx_ir as ir

    folder = tmp_path / "q4"
    source = Source(random_checkpoint, str(random_checkpoint), None, "directory")
    export_model(Job("deepseek-ocr", "deepseek-ocr", source, "q4", folder), lambda line: None)
    types = {name: value.dtype for name, value in ir.load(folder / "decoder.onnx").graph.initializers.items()}
    assert {types[name] for name in types if name.endswith("mlp.gate.weight")} == {ir.DataType.FLOAT}
    assert {types[name] for name in types if "norm" in name} == {ir.DataType.FLOAT16}
    vision = ir.load(folder / "vision.onnx").graph.initializers.values()
    assert ir.DataType.UINT8 not in {value.dtype for value in vision}


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_values_and_scales_are_the_same_whichever_is_written_first_and_the_tensor_is_read_once(
    tmp_path: Path, channels: bool, turned: bool
) -> None:
    weight = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    precision = layers.Precision(layers.FLOAT, layers.FLOAT, None if channels else Blocks(4, 32), channels)
    parameters = weights_of(layers.linear("at", 64, 40, precision))
    read: list[str] = []
    with DataFile(tmp_path / "data") as data:
        for name in sorted(parameters, reverse=turned):
            data.add(name, parameters[name], lambda name: read.append(name) or weight)  # type: ignore[func-returns-value]
    content = data.path.read_bytes()
    found = {
        name: np.frombuffer(content[at.offset : at.offset + at.length], at.dtype.numpy()).reshape(at.shape)
        for name, at in data.stored.items()
    }
    if channels:
        expected = dict(zip(("weight", "scales", "importance"), quantize_channels(weight), strict=True))
    else:
        expected = dict(zip(("weight", "scales"), quantize(weight, Blocks(4, 32)), strict=True))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name].ravel(), values.ravel())
    assert read == ["at.weight"]
