"""Rows of device memory: copied by addresses, through a graph of one node. The CPU provider stands in for a GPU."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from runtime.buffers import Buffer, device_copy
from runtime.providers import find_device, ort
from runtime.small_graphs import identity_graph

CPU = find_device("cpu")


def on_device(values: np.ndarray) -> Buffer:
    """A buffer as a GPU has it: a value of ONNX Runtime's, addressed and never touched by NumPy."""
    buffer = Buffer(values.shape, values.dtype, CPU)
    buffer._value = ort.OrtValue.ortvalue_from_numpy(values)
    buffer._memory = "elsewhere"
    del buffer._array
    return buffer


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float16)


def test_the_graph_written_by_hand_is_one_that_onnx_reads() -> None:
    model = onnx.load_from_string(identity_graph())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Identity"]


def test_any_part_of_memory_is_copied_and_nothing_else() -> None:
    source, target = random(1000), np.zeros(1000, np.float16)
    device_copy(CPU)(200, source.ctypes.data + 100, target.ctypes.data + 50)
    assert np.array_equal(target[25:125], source[50:150])
    assert not target[:25].any()
    assert not target[125:].any()


def test_a_row_moves_within_a_buffer() -> None:
    values = random(3, 2, 8, 4)
    buffer = on_device(values.copy())
    buffer.copy_row(buffer, source=2, target=0, length=5)
    found = buffer._value.numpy()
    assert np.array_equal(found[0, :, :5], values[2, :, :5])
    assert np.array_equal(found[0, :, 5:], values[0, :, 5:])
    assert np.array_equal(found[1:], values[1:])


@pytest.mark.parametrize(("before", "after"), [(8, 16), (16, 8)])
def test_rows_move_to_a_buffer_of_another_capacity(before: int, after: int) -> None:
    """As the KV cache does when it grows."""
    small, large = random(2, 3, before, 4), np.zeros((2, 3, after, 4), np.float16)
    target = on_device(large)
    target.copy_row(on_device(small), source=1, target=1, length=min(before, after))
    found = target._value.numpy()
    assert np.array_equal(found[1, :, : min(before, after)], small[1, :, : min(before, after)])
    assert not found[0].any()
    assert not found[1, :, min(before, after) :].any()
