"""PaddleOCR-VL in fewer bits, and its graphs for CUDA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from export import layers
from export.quantize import Blocks, dequantize, dequantize_channels, quantize, quantize_channels
from models.manifest import Manifest
from runtime import Model
from tests.export.paddleocr_vl.pairs import GREEDY, SIZES, Pair, ours, relative_error
from tests.export.proof import types_of_cuda_graphs


@pytest.mark.parametrize(("dtype", "vision", "limit"), [("f16", "f16", 1e-4), ("q8", "q8", 0.06), ("q4", "q8", 0.4)])
def test_other_dtypes_stay_near_f32_and_give_text(pair_of, picture, export_checkpoint, dtype, vision, limit) -> None:
    pair = pair_of()
    folder = export_checkpoint(pair.checkpoint, dtype, "paddleocr-vl", "paddleocr-vl", vision_dtype=vision)
    image = picture(500, 400)
    expected = pair.expected([image], "OCR:")
    features, logits = ours(pair, folder, [image], expected)
    mine, theirs = features[0].ravel(), expected.features[0].ravel()
    assert mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs) > 0.999
    assert np.linalg.norm(logits - expected.logits) / np.linalg.norm(expected.logits) < limit
    with Model.open(folder, device="cpu", slots=1) as model:
        assert model.read(image, **GREEDY).tokens


def rounded_checkpoint(source: Path, folder: Path, blocks: Blocks) -> Path:
    """The checkpoint with the weights that a quantised export really has: blocks in the decoder, channels in vision."""
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = {name: array.astype(np.float32) for name, array in load_file(source / "model.safetensors").items()}
    for name, array in tensors.items():
        is_decoder = name.startswith(("model.", "lm_head"))
        if array.ndim != 2 or "norm" in name or "position" in name:
            continue
        if is_decoder:
            fitting = blocks.fitting(array.shape[1])
            tensors[name] = dequantize(*quantize(array, fitting), fitting, array.shape[1])
        else:
            tensors[name] = dequantize_channels(*quantize_channels(array))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("dtype", "bits"), [("q8", 8), ("q4", 4)])
def test_quantised_graphs_compute_what_the_rounded_weights_say(
    tmp_path, monkeypatch, pair_of, picture, export_checkpoint, dtype, bits
) -> None:
    """With float activations in the decoder; the vision tower's 8-bit activations leave about a percent."""
    monkeypatch.setattr(layers.QuantizedLinear, "ACCURACY_LEVEL", 0)
    checkpoint = pair_of().checkpoint
    folder = export_checkpoint(checkpoint, dtype, "paddleocr-vl", "paddleocr-vl", vision_dtype="q8", block_size=32)
    rounded = Pair(rounded_checkpoint(checkpoint, tmp_path / "rounded", Blocks(bits, 32)), folder)
    image = picture(500, 400)
    expected = rounded.expected([image], "OCR:")
    features, _ = ours(rounded, folder, [image], expected)
    mine, theirs = features[0].ravel(), expected.features[0].ravel()
    assert mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs) > 0.999
    question = rounded.expected([], "What is OCR?")
    _, logits = ours(rounded, folder, [], question)
    assert relative_error(logits, question.logits) < 1e-4


def test_positions_turn_keys_and_queries_by_an_operator_that_every_provider_has(pair_of, export_checkpoint) -> None:
    """CUDA's GroupQueryAttention looks at positions in the first chunk of a prompt only, and no GPU is here to fail."""
    half = export_checkpoint(pair_of().checkpoint, "q8", "paddleocr-vl", "paddleocr-vl")
    files = Manifest.load(half).decoder.files
    assert set(files) == {"cpu", "cuda"}
    for file in files.values():
        nodes = ir.load(half / file).graph
        attention = [node for node in nodes if node.op_type == "GroupQueryAttention"]
        assert len(attention) == SIZES["default"].layers
        for node in attention:
            assert node.attributes["do_rotary"].as_int() == 0
            for turned in node.inputs[:2]:
                rotary = turned.producer()
                assert rotary.op_type == "RotaryEmbedding"
                assert [value.name for value in rotary.inputs[1:]] == ["rotary_rows", "rotary_cos", "rotary_sin"]


def test_the_float16_graphs_for_cuda_are_valid_and_take_float16_angles(pair_of, export_checkpoint) -> None:
    half = export_checkpoint(pair_of().checkpoint, "f16", "paddleocr-vl", "paddleocr-vl")
    types = types_of_cuda_graphs(half)["decoder"]
    assert types["inputs_embeds"] == types["past_key_values.0.key"] == types["rotary_cos"] == "tensor(float16)"
    assert types["logits"] == "tensor(float)"
