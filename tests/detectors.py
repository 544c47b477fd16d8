"""A layout detector that finds what a test tells it to: constants behind the inputs and outputs of the real ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.layout.labels import LABELS
from models.layout.manifest import DetectorImageRules, LayoutManifest
from models.layout.rules import PADDLEOCR_VL_15, DetectionRules
from models.manifest import FileInfo, Graph, SourceInfo

SIDE = 64
QUERIES = 300
Found = tuple[str, tuple[float, float, float, float], float]  # label, corners as shares of the page, score


def write_detector(folder: Path, found: Sequence[Found], rules: DetectionRules = PADDLEOCR_VL_15) -> Path:
    """Write the export of a detector that finds these on every page, to be read in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    outputs = detector_outputs(found)
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"the_{name}"], [name]) for name in outputs],
        "detector",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in outputs.items()],
        [numpy_helper.from_array(array, f"the_{name}") for name, array in outputs.items()],
    )
    file = folder / "layout.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    LayoutManifest(
        id="pp-doclayout-v3",
        dtype="f32",
        created_by="ocr-onnx, a test",
        source=SourceInfo(origin="directory", name=str(folder), fingerprint="none"),
        parameters=0,
        layout=Graph(files={"cpu": file.name}, compute={"cpu": "float32"}),
        labels=LABELS,
        image=DetectorImageRules(height=SIDE, width=SIDE),
        rules=rules,
        files={
            file.name: FileInfo(size=file.stat().st_size, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
        },
    ).save(folder)  # fmt: skip
    return folder


def detector_outputs(found: Sequence[Found]) -> dict[str, np.ndarray]:
    """What a detector's graph gives that finds these, its surest query last and its reading order that of the list."""
    logits = np.full((1, QUERIES, len(LABELS)), -20, np.float32)
    boxes = np.full((1, QUERIES, 4), 0.5, np.float32)
    places = list(range(len(found)))[::-1]  # query of each: the order of queries is not that of reading
    for place, (label, (left, top, right, bottom), score) in zip(places, found, strict=True):
        logits[0, place, LABELS.index(label)] = np.log(score / (1 - score))
        boxes[0, place] = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    return {"logits": logits, "pred_boxes": boxes, "order_logits": order_logits(np.array(places, np.int64))}


def order_logits(sequence: np.ndarray) -> np.ndarray:
    """[1, q, q] pairwise logits by which the queries of ``sequence`` are read first, and then the others."""
    ranks = np.full(QUERIES, QUERIES)
    ranks[sequence] = np.arange(len(sequence))
    ranks[ranks == QUERIES] = np.arange(len(sequence), QUERIES)
    says = np.where(ranks[:, None] < ranks[None, :], 8.0, -8.0)
    return np.where(np.tri(QUERIES, dtype=bool), -1e4, says)[None].astype(np.float32)
