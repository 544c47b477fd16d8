"""ONNX models of one or two nodes that the runtime makes for itself, as bytes.

Written by hand, since a serving machine has no onnx; the numbers are those of the fields in onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Sequence

_FLOAT, _UINT8, _INT64 = 1, 2, 7  # onnx.TensorProto.DataType
_OPSET, _IR_VERSION = 17, 8


def identity_graph() -> bytes:
    """Identity from ``x`` to ``y``, both uint8."""
    return _model(
        nodes=[_node("Identity", ["x"], ["y"])],
        inputs=[_value("x", _UINT8, ["n"])],
        outputs=[_value("y", _UINT8, ["n"])],
    )


def candidates_graph(count: int) -> bytes:
    """The largest of each row of ``logits``: ``best``, ``ids`` [rows, count] and ``log_sum_exp`` [rows]."""
    return _model(
        nodes=[
            _node("TopK", ["logits", "count"], ["best", "ids"], axis=1, sorted=0),
            _node("ReduceLogSumExp", ["logits"], ["log_sum_exp"], axes=[1], keepdims=0),
        ],
        inputs=[_value("logits", _FLOAT, ["rows", "vocabulary"])],
        outputs=[
            _value("best", _FLOAT, ["rows", "count"]),
            _value("ids", _INT64, ["rows", "count"]),
            _value("log_sum_exp", _FLOAT, ["rows"]),
        ],
        constants={"count": [count]},
    )


def merging_graph(kinds: Sequence[int]) -> bytes:
    """Rows of ``rows.0``, ``rows.1``, ... [n, width] by ``order``, numbers counted through all inputs: ``merged``.

    kinds : the inputs' types, as onnx.TensorProto numbers them; ``merged`` has the first input's.
    """
    names, nodes = [f"rows.{number}" for number in range(len(kinds))], []
    inputs = [_value(name, kind, [f"n.{name}", "width"]) for name, kind in zip(names, kinds, strict=True)]
    for number, kind in enumerate(kinds):
        if kind != kinds[0]:
            nodes.append(_node("Cast", [names[number]], [f"cast.{number}"], to=kinds[0]))
            names[number] = f"cast.{number}"
    nodes += [_node("Concat", names, ["all"], axis=0), _node("Gather", ["all", "order"], ["merged"], axis=0)]
    return _model(
        nodes=nodes,
        inputs=[*inputs, _value("order", _INT64, ["tokens"])],
        outputs=[_value("merged", kinds[0], ["tokens", "width"])],
    )


def _model(
    nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes],
    constants: dict[str, list[int]] | None = None,
) -> bytes:  # fmt: skip
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "graph")
    for name, numbers in (constants or {}).items():
        data = b"".join(number.to_bytes(8, "little", signed=True) for number in numbers)
        graph += _field(5, _field(1, len(numbers)) + _field(2, _INT64) + _field(8, name) + _field(9, data))
    graph += b"".join(_field(11, value) for value in inputs) + b"".join(_field(12, value) for value in outputs)
    return _field(1, _IR_VERSION) + _field(8, _field(1, "") + _field(2, _OPSET)) + _field(7, graph)


def _node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int | list[int]) -> bytes:
    node = b"".join(_field(1, name) for name in inputs) + b"".join(_field(2, name) for name in outputs)
    node += _field(4, kind)
    for name, value in attributes.items():
        content = _field(1, name)
        if isinstance(value, int):
            content += _field(3, value) + _field(20, 2)  # INT
        else:
            content += b"".join(_field(8, number) for number in value) + _field(20, 7)  # INTS
        node += _field(5, content)
    return node


def _value(name: str, kind: int, shape: Sequence[str]) -> bytes:
    """A graph's input or output; every dimension has a name and any length."""
    dimensions = b"".join(_field(1, _field(2, dimension)) for dimension in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dimensions)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """One protobuf field: a number that is not negative, or contents after their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; a byte that is not the last has its highest bit set."""
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)
