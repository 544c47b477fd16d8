"""How far an exported layout detector is from transformers' own module: what ``tools.parity`` prints of one.

Whole detectors can be compared with trained weights only: with random weights, near ties in the choice of queries are
chaotic, and PyTorch in float32 is as far from PyTorch in float64. So the halves are compared as well: the features of
the encoder, and what the module's decoder makes of the graph's own features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutput

from export.check import mapped_session
from export.checkpoint import Checkpoint
from export.layout.loading import load_detector
from models.layout.boxes import regions
from models.layout.decode import decode
from models.layout.detectors import DETECTORS
from models.layout.manifest import LayoutManifest
from models.layout.regions import Region
from models.layout.resize import pixel_values

_OUTPUTS = ("logits", "pred_boxes", "order_logits")
_SCALES = 3  # feature maps that the decoder looks at


@dataclass(frozen=True)
class LayoutParity:
    """Largest differences, float32 on the CPU on both sides.

    encoder : of its features, relative to their standard deviation. logits, boxes, order, masks : of the decoder on the
    same features; boxes in pixels of the graph's input, order in logits, masks relative to their standard deviation
    (None where a detector has none). same_regions : whether the whole detector finds what the whole module finds.
    """

    encoder: float
    logits: float
    boxes: float
    order: float
    masks: float | None
    found: list[Region]
    expected: list[Region]

    @property
    def same_regions(self) -> bool:
        """Labels and order alike, and no side further off than a pixel."""
        return len(self.found) == len(self.expected) and all(
            one.label == other.label and np.abs(np.subtract(one.box, other.box)).max() <= 1
            for one, other in zip(self.found, self.expected, strict=True)
        )


def measure(checkpoint: Path, folder: Path, page: Image.Image) -> LayoutParity:
    """Compare an export with the checkpoint that it was made from, on one page in RGB."""
    manifest = LayoutManifest.load(folder)
    pixels = pixel_values(page, manifest.image.height, manifest.image.width)
    given = run_with_features(folder / manifest.layout.files["cpu"], pixels)
    module = load_detector(Checkpoint(checkpoint), DETECTORS[manifest.id]).model
    whole = run_module(module, pixels)
    half = run_module(module, pixels, given)
    spread = float(manifest.image.width)
    masks = None
    if "mask_queries" in given:
        product = given["mask_queries"][0] @ given["mask_features"][0].reshape(given["mask_features"].shape[1], -1)
        masks = _furthest(product, half["out_masks"][0].reshape(product.shape)) / float(product.std())
    return LayoutParity(
        encoder=max(_furthest(given[name], whole[name]) / float(whole[name].std()) for name in feature_names(given)),
        logits=_furthest(given["logits"], half["logits"]),
        boxes=_furthest(given["pred_boxes"], half["pred_boxes"]) * spread,
        order=_furthest(given["order_logits"], half["order_logits"]),
        masks=masks,
        found=regions(decode(given, *page.size), manifest.rules, *page.size),
        expected=regions(decode(whole, *page.size), manifest.rules, *page.size),
    )


def report(checkpoint: Path, folders: Sequence[Path], page: Image.Image) -> None:
    """Print a row for each export, and what the detector finds beside what the module finds where they differ."""
    print("| detector | encoder, of its spread | logits | boxes, pixels | order, logits | masks | same regions |")
    print("|---|---|---|---|---|---|---|")
    for folder in folders:
        p = measure(checkpoint, folder, page)
        masks = "-" if p.masks is None else f"{p.masks:.1e}"
        regions_ = f"all {len(p.found)}" if p.same_regions else f"NO: {len(p.found)} and {len(p.expected)}"
        print(
            f"| {LayoutManifest.load(folder).id} | {p.encoder:.1e} | {p.logits:.1e} | {p.boxes:.1e} | {p.order:.1e} "
            f"| {masks} | {regions_} |",
            flush=True,
        )
        for title, found in (("export", p.found), ("transformers", p.expected)):
            for one in found:
                box = ", ".join(f"{side:.0f}" for side in one.box)
                print(f"{title:>12} {one.order}: {one.label} {one.score:.2f} [{box}]")


def run_with_features(graph: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs of a graph, and beside them what its encoder gives: ``feature_0`` ..."""
    model = ir.load(graph)
    for level in range(_SCALES):
        (weight,) = [
            value for name, value in model.graph.initializers.items()
            if name.removesuffix("_half").endswith(f"model.decoder_input_proj.{level}.0.weight")
        ]  # fmt: skip
        ((reader, _),) = weight.uses()
        (feature,) = reader.inputs[:1]
        assert feature is not None
        assert feature.dtype is not None
        same = ir.node("Identity", [feature])
        same.outputs[0].name = f"feature_{level}"
        same.outputs[0].dtype, same.outputs[0].shape = feature.dtype, feature.shape
        model.graph.append(same)
        model.graph.outputs.append(same.outputs[0])
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "graph.onnx"
        ir.save(model, path, external_data="graph.onnx.data")
        session = mapped_session(path)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {"pixel_values": pixels}), strict=True))


def run_module(
    module: Any, pixels: np.ndarray, features: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """What transformers' module gives, under the graph's names. features : in place of its own encoder's."""
    kept: list[Any] = []
    hook = module.model.encoder.register_forward_hook(lambda part, given, output: kept.append(output))
    encoder_outputs = None
    if features is not None:
        maps: Any = [torch.from_numpy(features[name]) for name in feature_names(features)]  # V2 takes a list of them
        mask = features.get("mask_features")
        encoder_outputs = BaseModelOutput(last_hidden_state=maps) if mask is None else (maps, torch.from_numpy(mask))
    # V2 sorts its queries unstably; which of the possible orders comes out is no property of the model.
    argsort = torch.argsort
    library: Any = torch
    library.argsort = lambda values, dim=-1, descending=False: argsort(
        values, dim=dim, descending=descending, stable=True
    )
    try:
        with torch.no_grad():
            found = module(torch.from_numpy(pixels), encoder_outputs=encoder_outputs)
    finally:
        torch.argsort = argsort
        hook.remove()
    values = {name: found[name].numpy() for name in (*_OUTPUTS, "out_masks") if name in found}
    if kept:
        values |= {f"feature_{level}": maps.numpy() for level, maps in enumerate(kept[0].last_hidden_state)}
    return values


def feature_names(values: Mapping[str, Any]) -> list[str]:
    """Names of the encoder's features, the finest grid first."""
    return sorted(name for name in values if name.startswith("feature_"))


def _furthest(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())
