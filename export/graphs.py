"""Writes graphs and their data files to disk, and knows which weights each data file holds.

Used by the pipeline for exports, and by the report for its float32 reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from tqdm import tqdm

from models.manifest import Provider

from .family import GraphName, Parts
from .weights import DataFile, Load, Weight, weights_of


def stored_weights(parts: Mapping[Provider, Parts]) -> dict[GraphName, dict[str, Weight]]:
    """The weights in each part's data file: of all its providers' graphs, which share most of them.

    Large weights come first: their sizes are mostly multiples of the alignment, so that little of the file is empty.
    """
    stored: dict[GraphName, dict[str, Weight]] = {}
    for by_name in parts.values():
        for name, part in by_name.items():
            weights = stored.setdefault(name, {})
            for parameter, weight in weights_of(part.module).items():
                weights.setdefault(weight.key(parameter), weight)
    return {name: dict(sorted(weights.items(), key=lambda item: not item[1].large)) for name, weights in stored.items()}


def write_graphs(
    folder: Path, parts: Mapping[Provider, Parts], stored: Mapping[GraphName, Mapping[str, Weight]], load: Load,
    *, what: str = "weights",
) -> dict[str, str]:  # fmt: skip
    """Write every data file, then the graphs that refer to it; returns the data files' hashes by name.

    what : name in the progress bar.
    """
    hashes = {}
    total = sum(weight.nbytes for weights in stored.values() for weight in weights.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=what, mininterval=0.5) as bar:
        for name, weights in stored.items():
            with DataFile(folder / f"{name}.onnx.data") as data:
                for key, weight in weights.items():
                    data.add(key, weight, load, bar)
            hashes[data.path.name] = data.sha256
            for provider, by_name in parts.items():
                graph = by_name[name].declare()
                for parameter, weight in weights_of(by_name[name].module).items():
                    weight.const_value = data.tensor(weight.key(parameter))
                ir.save(ir.Model(graph, ir_version=10), folder / graph_file(name, provider))
    return hashes


def graph_file(name: str, provider: Provider) -> str:
    """Name of the file of one graph for one provider."""
    return f"{name}.onnx" if provider == "cpu" else f"{name}.{provider}.onnx"
