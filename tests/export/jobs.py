"""A small checkpoint's export, and ways to spoil the checkpoint or to see that nothing was published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export.export_errors import ExportError
from export.pipeline import Job, export_model
from export.source import Source
from models.manifest import Manifest, lock_file
from tools.checkpoints import Sizes

ROOT = Path(__file__).resolve().parents[2]


PATIENCE = 60.0  # seconds until a test that hangs fails


TINY = Sizes(
    hidden=32, layers=2, experts=4, top_k=2, expert_mlp=16, dense_mlp=32, vocabulary=300, max_positions=512,
    sam_width=24, sam_layers=2, sam_heads=2, sam_global=(1,), sam_mlp=32, sam_neck=16, sam_channels=(16, 32),
    image_size=256, clip_layers=1, clip_heads=2, clip_mlp=32,
)  # fmt: skip


WEIGHTS = "model-00001-of-000001.safetensors"


def job(checkpoint: Path, target: Path, **changes: Any) -> Job:
    source = Source(checkpoint, str(checkpoint), None, "directory")
    return Job(
        **{"model_id": "tiny", "family": "deepseek-ocr", "source": source, "dtype": "f32", "target": target, **changes}
    )


def export(checkpoint: Path, target: Path, **changes: Any) -> tuple[Manifest, list[str]]:
    """Export in this process; the manifest and the lines that were reported."""
    lines: list[str] = []
    return export_model(job(checkpoint, target, **changes), lines.append), lines


def leftovers(target: Path) -> set[str]:
    """What stands beside the target, its lock aside."""
    return {path.name for path in target.parent.iterdir()} - {target.name, lock_file(target).name}


def refused(checkpoint: Path, target: Path, **changes: Any) -> str:
    """The error of an export that must publish nothing and leave nothing."""
    with pytest.raises(ExportError) as caught:
        export(checkpoint, target, **changes)
    assert not target.exists()
    assert not leftovers(target)
    return str(caught.value)


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def edit_tensors(checkpoint: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    change(tensors)
    save_file(tensors, checkpoint / WEIGHTS)


def rewritten(source: Path, target: Path, rounded: Callable[[str, np.ndarray], np.ndarray]) -> Path:
    """A checkpoint's copy in float32. rounded : from a tensor's name and values to the values in the copy."""
    target.mkdir()
    for name in ("config.json", "processor_config.json", "tokenizer.json"):
        (target / name).write_bytes((source / name).read_bytes())
    tensors: dict[str, np.ndarray] = {}
    for file in source.glob("*.safetensors"):
        tensors.update({name: value.astype(np.float32) for name, value in load_file(file).items()})
    tensors = {name: np.ascontiguousarray(rounded(name, value)) for name, value in tensors.items()}
    save_file(tensors, target / "model.safetensors")
    return target


def graph_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".onnx", ".data")}
