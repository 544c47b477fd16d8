"""The largest absolute value that each part of a graph computes, for ``--report``.

float16 ends at 65,504, and what overflows there comes out as noise or as nothing. Published checkpoints are bfloat16,
which never overflows, so a checkpoint says by its activations alone whether float16 will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from .check import mapped_session

WARN_OVER = 30_000  # other pages have other values: half of what float16 holds

_PREFIX = "largest:"
_LAYER = re.compile(r"(?:^|/)layers\.(\d+)/")
# What computes floats; the rest moves them, or computes shapes.
_COMPUTING = frozenset(
    {
        "MatMul", "Conv", "Gelu", "QuickGelu", "MoE", "GroupQueryAttention", "MultiHeadAttention", "LayerNormalization",
        "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "RotaryEmbedding",
    }
)  # fmt: skip


class Watched:
    """A session of a float32 graph that remembers the largest absolute values; otherwise as the graph's own."""

    def __init__(self, file: Path) -> None:
        """The graph with the outputs that tell is written beside ``file``, whose data it shares."""
        watched = file.with_name(f"watched.{file.name}")
        model = ir.load(file)
        self._own = [str(output.name) for output in model.graph.outputs]
        self._extra = _tell(model.graph)
        ir.save(model, watched)
        self._session = mapped_session(watched)
        self.largest: dict[str, float] = {}  # by layer, "other" for what is in none

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
    """Give the graph an output for each value that is computed: its name -> the layer that it is of."""
    found: dict[str, str] = {}
    for node in list(graph):
        if node.op_type not in _COMPUTING:
            continue
        layer = _LAYER.search(node.name or "")
        # The last output of a norm that adds is the sum, the stream that everything is added to.
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
    """A line for each part whose values come near the end of float16, and one with the largest of all."""
    for part, by_layer in largest.items():
        worst = max(by_layer, key=lambda layer: by_layer[layer])
        yield f"{part}: largest absolute activation {by_layer[worst]:,.0f} (layer {worst})"
        over = [layer for layer, value in by_layer.items() if not value <= WARN_OVER]
        if over:
            yield (
                f"WARNING: {part}: activations over {WARN_OVER:,} in layers {', '.join(over)}: float16 ends at 65,504; "
                "on a GPU take --dtype bf16"
            )
