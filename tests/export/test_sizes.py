"""How large full-size exports are, reckoned from the published sizes without writing them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.checkpoint import Checkpoint
from export.deepseek_ocr import DeepseekOcrExport
from export.graphs import stored_weights
from export.pipeline import Job, precisions_of
from export.source import Source
from tools.checkpoints import FULL_SIZE, published_config, tensor_shapes
from tools.random_checkpoints import write_without_values

# tokenizer.json (10.0 MB), the graphs themselves (2.9 MB), the manifest with a report.
OTHER_FILES = 13_500_000


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> DeepseekOcrExport:
    """The published checkpoint without its values: a header, and a file that has its length and holds nothing."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "config.json").write_text(json.dumps(published_config(FULL_SIZE)))
    write_without_values(folder / "model.safetensors", tensor_shapes(FULL_SIZE))
    return DeepseekOcrExport(Checkpoint(folder), {})


@pytest.mark.parametrize(
    ("dtype", "vision", "gigabytes"),
    [("q4", "q8", 2.0), ("q4", "f16", 2.5), ("q8", "q8", 4.0), ("q8", "f16", 4.0), ("f16", "f16", 7.0)],
)
def test_exports_of_the_published_model_stay_below_their_sizes(full_size, dtype, vision, gigabytes) -> None:
    job = Job("m", "deepseek-ocr", Source(Path(), "x", None, "directory"), dtype, Path("out"), vision_dtype=vision)
    parts = {provider: full_size.parts(*precision) for provider, precision in precisions_of(job, None).items()}
    total = OTHER_FILES
    for weights in stored_weights(parts).values():
        size = useful = 0
        for weight in weights.values():
            size += -size % (65536 if weight.large else 64) + weight.nbytes
            useful += weight.nbytes
        assert size - useful < 2_000_000  # large ones come first, so that few gaps are needed to align them
        total += size
    assert total < gigabytes * 1e9
