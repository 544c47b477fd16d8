"""Begins a graph and declares its inputs and outputs; called by the vision towers and by the decoder."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import GraphBuilder

from .layers import FLOAT, MICROSOFT


def new_graph(name: str) -> GraphBuilder:
    """An empty graph to declare into."""
    graph = ir.Graph(inputs=[], outputs=[], nodes=[], opset_imports={"": 21, MICROSOFT: 1}, name=name)
    return GraphBuilder(graph)


def float_input(
    builder: GraphBuilder, name: str, shape: list[str | int], compute: ir.DataType, border: ir.DataType = FLOAT
) -> ir.Value:
    """A float input, cast to the graph's type of computation. border : the type in which the host gives the input."""
    value = builder.input(name, border, shape)
    return value if border == compute else builder.op.Cast(value, to=compute)


def add_output(builder: GraphBuilder, value: ir.Value, name: str, dtype: ir.DataType, shape: list[str | int]) -> None:
    """Make a value an output. dtype : the value's own."""
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
    builder.graph.outputs.append(value)


def add_float_output(
    builder: GraphBuilder, value: ir.Value, name: str, dtype: ir.DataType, shape: list[str | int]
) -> None:
    """Make a value an output, cast to float32. dtype : the value's own."""
    add_output(builder, value if dtype == FLOAT else builder.op.Cast(value, to=FLOAT), name, FLOAT, shape)
