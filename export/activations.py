"""The largest absolute value that each part of a graph computes, for ``--report``.

float16 ends at 65,504, and larger values come out as noise. Published checkpoints are bfloat16, which never overflows,
so only activations show whether float16 suffices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from .check import mapped_session

WARN_OVER = 30_000  # half of float16's range, as other pages have other values

_PREFIX = "largest:"
_LAYER = re.compile(r"(?:^|/)layers\.(\d+)/")
# Operators that compute floats; others move floats, or compute shapes.
_COMPUTING = frozenset(
    {
        "MatMul", "Conv", "Gelu", "QuickGelu", "MoE", "GroupQueryAttention", "MultiHeadAttention", "LayerNormalization",
        "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "RotaryEmbedding",
    }
)  # fmt: skip


class Watched:
    """A session of a float32 graph that also records the largest absolute values."""

    def __init__(self, file: Path) -> None:
        """The graph with its additional outputs is written beside ``file``, and shares its data file."""
        watched = file.with_name(f"watched.{file.name}")
        model = ir.load(file)
        self._own = [str(output.name) for output in model.graph.outputs]
        self._extra = _tell(model.graph)
        ir.save(model, watched)
        self._session = mapped_session(watched)
        self.largest: dict[str, float] = {}  # by layer, or "other"

    def get_inputs(self) -> Sequence[ort.NodeArg]:
        """See ``onnxruntime.InferenceSession``."""
        inputs: Sequence[ort.NodeArg] = self._session.get_inputs()
        return inputs

    def get_outputs(self) -> Sequence[ort.NodeArg]:
        """See ``onnxruntime.InferenceSession``."""
        return [output for output in self._session.get_outputs() if output.name in self._own]

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """See ``onnxruntime.InferenceSession``."""
        names = list(names or self._own)
        outputs: list[np.ndarray] = self._session.run([*names, *self._extra], dict(feeds))
        for name, value in zip(self._extra, outputs[len(names) :], strict=True):
            layer = self._extra[name]
            self.largest[layer] = float(np.maximum(self.largest.get(layer, 0.0), value))  # NaN stays
        return outputs[: len(names)]


def _tell(graph: ir.Graph) -> dict[str, str]:
    """Add an output for each computed value. Returns the outputs' names -> their layers."""
    found: dict[str, str] = {}
    for node in list(graph):
        if node.op_type not in _COMPUTING:
            continue
        layer = _LAYER.search(node.name or "")
        # The last output of a norm with a residual is the sum: the residual stream.
        for output in {0: node.outputs[0], len(node.outputs) - 1: node.outputs[-1]}.values():
            if not output.name or output.name.startswith("present"):
                continue
            magnitude = ir.node("Abs", [output])
            largest = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0})
            result = largest.outputs[0]
            result.name = f"{_PREFIX}{output.name}"
            result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
            graph.extend([magnitude, largest])
            graph.outputs.append(result)
            found[result.name] = layer.group(1) if layer else "other"
    return found


def warnings_of(largest: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """A line for each part with values near the end of float16, and one with the largest value."""
    for part, by_layer in largest.items():
        worst = max(by_layer, key=lambda layer: by_layer[layer])
        yield f"{part}: largest absolute activation {by_layer[worst]:,.0f} (layer {worst})"
        over = [layer for layer, value in by_layer.items() if not value <= WARN_OVER]
        if over:
            yield (
                f"WARNING: {part}: activations over {WARN_OVER:,} in layers {', '.join(over)}: float16 ends at 65,504; "
                "on a GPU take --dtype bf16"
            )
