"""Traces transformers' module into one ONNX graph: from a page's pixels to logits, boxes and pairwise order."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from optimum.exporters.base import ExporterConfig
from optimum.utils.input_generators import DummyVisionInputGenerator
from optimum.utils.normalized_config import NormalizedVisionConfig
from torch import nn

from models.layout.manifest import DetectorImageRules

from ..export_errors import ExportError
from .loading import Loaded
from .rewrites import fold_norms, rewritten_functions

OPSET = 18  # CUDA has a kernel of ReduceMax for opset 18, and none for 20


class LayoutExporterConfig(ExporterConfig):
    """Inputs, outputs and dummy inputs of a detector.

    The batch is one page: a larger one gains nothing on a CPU, and V2 and V3 are traced with the example's batch.
    """

    NORMALIZED_CONFIG_CLASS = NormalizedVisionConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (DummyVisionInputGenerator,)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"pixel_values": {}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """V3's masks come as two factors: [1, q, 32] times [1, 32, h / 4, w / 4], a tenth of their product."""
        names = ["logits", "pred_boxes", "order_logits"]
        if self._config.model_type == "pp_doclayout_v3":
            names += ["mask_queries", "mask_features"]
        return {name: {} for name in names}


class _Graph(nn.Module):
    """The module, returning its tensors in the order of the outputs' names."""

    def __init__(self, model: Any, outputs: list[str]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs
        self.seen: list[Any] = []  # the encoder's outputs
        if "mask_features" in outputs:
            model.model.encoder.register_forward_hook(lambda module, given, output: self.seen.append(output))

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[1, 3, h, w] -> the outputs."""
        found = self.model(pixel_values)
        tensors = {name: found[name] for name in ("logits", "pred_boxes", "order_logits")}
        if "mask_features" in self.outputs:
            inner = self.model.model
            tensors["mask_queries"] = inner.mask_query_head(inner.decoder_norm(found.last_hidden_state))
            tensors["mask_features"] = self.seen.pop().mask_feat
        return tuple(tensors[name] for name in self.outputs)


def trace(loaded: Loaded, image: DetectorImageRules, path: Path) -> None:
    """Write the graph and its weights. The model is changed on the way, and must not be used again.

    Raises
    ------
    ExportError
        when PyTorch cannot trace the module: an unknown version of torch or transformers.
    """
    config = LayoutExporterConfig(loaded.model.config, "object-detection")
    dummy = config.generate_dummy_inputs(batch_size=1, num_channels=3, height=image.height, width=image.width)
    fold_norms(loaded.model)
    graph = _Graph(loaded.model, list(config.outputs)).eval()
    noisy = logging.getLogger("torch.onnx._internal.exporter._registration")  # warns that torchvision is missing
    level = noisy.level
    try:
        noisy.setLevel(logging.ERROR)
        with torch.no_grad(), warnings.catch_warnings(), rewritten_functions(loaded.detector.kind):
            warnings.simplefilter("ignore")  # warnings of the exporter about its own code
            program = torch.onnx.export(
                graph, kwargs=dummy, dynamo=True, input_names=list(config.inputs), output_names=list(config.outputs),
                opset_version=OPSET, verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter raises many classes
        raise ExportError(
            f"torch {torch.__version__} cannot trace {loaded.detector.id}: {error}; the versions in constraints.txt can"
        ) from error
    finally:
        noisy.setLevel(level)
    assert program is not None
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # each node's Python stack, two thirds of the file
    ir.save(model, path, external_data=f"{path.name}.data")
