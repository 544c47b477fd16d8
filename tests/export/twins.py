"""A float32 twin of an export's CUDA graphs, to run them where there is no GPU.

Node for node the graphs for CUDA, with float32 in place of their 16-bit type: what they compute, rounding aside.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir

from export.pipeline import file_info
from models.manifest import FILE_NAME

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def twin_of(folder: Path, target: Path) -> Path:
    """A copy of an export whose CPU graphs are the twins of its CUDA graphs."""
    target.mkdir()
    manifest = json.loads((folder / FILE_NAME).read_bytes())
    for file in folder.iterdir():
        if file.name != FILE_NAME and not file.name.endswith(".onnx"):
            shutil.copyfile(file, target / file.name)
    for name in ("vision", "embed", "decoder"):
        ir.save(widened(ir.load(folder / f"{name}.cuda.onnx")), target / f"{name}.onnx")
        manifest[name] = {"files": {"cpu": f"{name}.onnx"}, "compute": {"cpu": "float32"}}
    manifest["files"] = {file.name: file_info(file, "-").model_dump() for file in target.iterdir()}
    (target / FILE_NAME).write_text(json.dumps(manifest))
    return target


def widened(model: ir.Model) -> ir.Model:
    """The model with float32 for float16 and bfloat16."""
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype in _NARROW:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype in _NARROW:
            array = value.const_value.numpy()
            assert array.dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in graph:
        if node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()) in _NARROW:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
        for output in node.outputs:
            if output.dtype in _NARROW:
                output.type = ir.TensorType(ir.DataType.FLOAT)
    return model
