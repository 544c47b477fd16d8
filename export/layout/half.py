"""Turns a detector's float32 graph into one with float16 convolutions, for CUDA.

Convolutions take four fifths of the time, and 11 bits suffice for their inputs, which are features. The rest
(positions, anchors, the top scores, the order) stays in float32: float16 cannot represent half a pixel in 800.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

# Operators between convolutions whose float16 results are float32's, rounded.
_BETWEEN = frozenset({"Relu", "Sigmoid", "Mul", "Add", "Concat", "MaxPool", "Resize", "Pad"})
_DATA_INPUTS = {"Resize": 1, "Pad": 1, "MaxPool": 1}  # the other inputs are sizes
_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def write_half(source: Path, target: Path) -> None:
    """Write the graph of ``source`` with its convolutions in float16."""
    model = ir.load(source)
    to_half(model.graph)
    ir.save(model, target, external_data=f"{target.name}.data")


def to_half(graph: ir.Graph) -> None:
    """Convert convolutions and the operators between them to float16, with casts at the borders."""
    halves = _Halves(graph)
    for node in list(graph):
        if node.op_type == "Conv" or _between(node, halves):
            halves.convert(node)
    halves.give_back()


def _between(node: ir.Node, halves: _Halves) -> bool:
    """Whether all of a node's inputs are in float16 already, or constant."""
    if node.op_type not in _BETWEEN:
        return False
    data = list(_data(node))
    return any(value in halves.made for value in data) and all(
        value in halves.made or value.const_value is not None for value in data
    )


def _data(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs that have the node's type of computation."""
    for value in node.inputs[: _DATA_INPUTS.get(node.op_type)]:
        if value is not None:
            yield value


class _Halves:
    """The values that are in float16 so far."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.made: set[ir.Value] = set()  # by converted nodes
        self._cast: dict[ir.Value, ir.Value] = {}  # float32 value -> its float16 copy

    def convert(self, node: ir.Node) -> None:
        """Let a node compute in float16."""
        for i, value in enumerate(node.inputs[: _DATA_INPUTS.get(node.op_type)]):
            if value is not None and value not in self.made:
                node.replace_input_with(i, self._half(value, node))
        (output,) = node.outputs
        output.dtype = _HALF
        self.made.add(output)

    def give_back(self) -> None:
        """Cast to float32 for all other nodes, and remove unused constants."""
        outputs = set(self.graph.outputs)
        for value in self.made:
            readers = [(reader, i) for reader, i in value.uses() if not self.made.intersection(reader.outputs)]
            if not readers and value not in outputs:
                continue
            producer = value.producer()
            assert producer is not None
            cast = ir.node("Cast", [value], {"to": _FLOAT}, name=f"{value.name}_wide")
            wide = cast.outputs[0]
            wide.dtype, wide.shape = _FLOAT, value.shape
            self.graph.insert_after(producer, cast)
            for reader, i in readers:
                reader.replace_input_with(i, wide)
            if value in outputs:
                wide.name, value.name = value.name, f"{value.name}_half"
                place = self.graph.outputs.index(value)
                self.graph.outputs[place] = wide
        for name, value in list(self.graph.initializers.items()):
            if not value.uses():
                del self.graph.initializers[name]

    def _half(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """A float16 copy of a float32 value: of a constant now, else by a cast in front of its first reader."""
        if value not in self._cast:
            name = f"{value.name}_half"
            if value.const_value is not None:
                array = value.const_value.numpy().astype(np.float16)
                half = ir.Value(name=name, const_value=ir.tensor(array, name=name))
                half.dtype, half.shape = _HALF, ir.Shape(array.shape)
                self.graph.register_initializer(half)
            else:
                cast = ir.node("Cast", [value], {"to": _HALF}, name=name)
                half = cast.outputs[0]
                half.name, half.dtype, half.shape = name, _HALF, value.shape
                self.graph.insert_before(node, cast)
            self._cast[value] = half
        return self._cast[value]
