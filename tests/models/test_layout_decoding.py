"""The picture that a detector sees, and what its graph's answer means, against PyTorch and transformers' own code."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.layout.decode import decode, order_ranks, sigmoid
from models.layout.labels import LABELS
from models.layout.resize import pixel_values, resize_cubic
from tests.detectors import detector_outputs


@pytest.mark.parametrize(("width", "height"), [(1654, 2339), (801, 799), (800, 800), (97, 1003), (40, 33), (1, 1)])
@pytest.mark.parametrize("target", [(800, 800), (128, 160)])
def test_pages_are_resized_as_by_four_taps_without_antialiasing(
    width: int, height: int, target: tuple[int, int]
) -> None:
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    planes = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float64))
    exact = torch.nn.functional.interpolate(planes, size=target, mode="bicubic", align_corners=False, antialias=False)
    expected = exact[0].clamp(0, 255).numpy().transpose(1, 2, 0)
    found = resize_cubic(pixels, *target)
    assert found.shape == (*target, 3)
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 0.5001  # of a grey level: it is rounded once


def test_a_page_of_the_detectors_own_size_stays_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    assert np.array_equal(resize_cubic(pixels, 64, 96), pixels)
    values = pixel_values(Image.fromarray(pixels), 64, 96)
    assert values.shape == (1, 3, 64, 96)
    assert values.dtype == np.float32
    assert np.array_equal(values[0].transpose(1, 2, 0), pixels / np.float32(255))


def test_logits_of_any_size_have_a_sigmoid_without_a_warning() -> None:
    with np.errstate(all="raise", under="ignore"):
        found = sigmoid(np.array([-1e4, -100, -1, 0, 1, 100, 1e4], np.float32))
    assert np.allclose(found, [0, 0, 0.26894143, 0.5, 0.73105857, 1, 1])


@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
@settings(max_examples=60, deadline=None)
def test_the_reading_order_is_that_of_transformers(seed: int, queries: int) -> None:
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(seed).normal(0, 3, (queries, queries)).astype(np.float32)
    logits[np.tri(queries, dtype=bool)] = -1e4
    expected = _order_seqs()(None, torch.from_numpy(logits)[None])[0].numpy()
    assert np.array_equal(order_ranks(logits), expected)


def test_a_query_that_may_be_two_things_comes_twice() -> None:
    outputs = detector_outputs([("text", (0.1, 0.1, 0.5, 0.5), 0.9), ("table", (0.5, 0.5, 0.9, 0.9), 0.6)])
    outputs["logits"][0, 1, LABELS.index("footnote")] = 1.0  # 0.73, of the text's query
    found = decode(outputs, 1000, 1000)
    assert len(found) == 300
    assert [LABELS[label] for label in found.labels[:3]] == ["text", "footnote", "table"]
    assert np.allclose(found.boxes[:3], [[100, 100, 500, 500], [100, 100, 500, 500], [500, 500, 900, 900]])
    assert found.ranks[:3].tolist() == [0, 0, 1]
    assert np.allclose(found.scores[:3], [0.9, 0.7310586, 0.6], atol=1e-6)


def _order_seqs() -> Any:
    """transformers' function, from its source: its module cannot be imported without torchvision."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    module = "models/pp_doclayout_v3/image_processing_pp_doclayout_v3.py"
    tree = ast.parse((Path(transformers.__file__).parent / module).read_text(encoding="utf-8"))
    (function,) = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_get_order_seqs"
    ]
    names: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([function], []), module, "exec"), names)
    return names["_get_order_seqs"]
