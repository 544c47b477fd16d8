"""Counting a checkpoint's parameters, and what dtype an entry gets by it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from models.catalog import CATALOG
from models.checkpoint_size import parameter_count
from models.config import Config, load_config


def write_empty(path: Path, parameters: int) -> None:
    """A safetensors file of so many parameters without their values: only the header counts."""
    header = json.dumps({"w": {"dtype": "BF16", "shape": [parameters], "data_offsets": [0, 2 * parameters]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def test_parameters_are_counted_over_all_shards(tmp_path: Path) -> None:
    save_file({"a": np.zeros((3, 5), np.float32), "b": np.ones((), np.float32)}, tmp_path / "model-1.safetensors")
    save_file({"c": np.zeros(4, np.float16)}, tmp_path / "model-2.safetensors", metadata={"format": "np"})
    assert parameter_count(str(tmp_path)) == 15 + 1 + 4
    assert parameter_count("somebody/else", tmp_path / "model-2.safetensors") == 4


def test_what_the_exporter_would_not_read_is_not_counted(tmp_path: Path) -> None:
    write_empty(tmp_path / "model-1.safetensors", 70)
    write_empty(tmp_path / "adapter_model.safetensors", 5)
    assert parameter_count(str(tmp_path)) == 70
    write_empty(tmp_path / "model.safetensors", 30)  # beside older shards
    assert parameter_count(str(tmp_path)) == 30


@pytest.mark.parametrize("content", [b"", b"w", b"\xff" * 64, (3).to_bytes(8, "little") + b"[1]"])
def test_nobody_knows_the_size_of_a_hub_id_or_of_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    assert parameter_count("deepseek-ai/DeepSeek-OCR") is None
    (tmp_path / "model.safetensors").write_bytes(content)
    assert parameter_count(str(tmp_path)) is None


def test_small_checkpoints_stay_float32_on_the_cpu_and_large_ones_get_8_bits(tmp_path: Path) -> None:
    write_empty(tmp_path / "small/model.safetensors", 99_000_000)
    write_empty(tmp_path / "large/model.safetensors", 101_000_000)
    file = tmp_path / "config.toml"
    file.write_text(
        "[models.entries.small]\nsource = './small'\n"
        "[models.entries.large]\nsource = './large'\n"
        "[models.entries.mine]\nsource = './large'\ndtype = 'f32'\n"
    )
    config = load_config(file)
    found = {name: config.dtype_of(config.entry(name), "cpu") for name in ("small", "large", "mine", "deepseek-ocr")}
    assert found == {"small": "f32", "large": "q8", "mine": "f32", "deepseek-ocr": "q8"}
    assert {config.dtype_of(config.entry(name), "cuda") for name in ("small", "large", "tiny-ocr")} == {"f16"}
    assert config.dtype_of(config.entry("small-q4"), "cpu") == "q4"


@pytest.mark.skipif(
    not (Path(CATALOG["tiny-ocr"].source) / "model.safetensors").is_file(), reason="no weights in this checkout"
)
def test_the_built_in_model_is_small(tmp_path: Path) -> None:
    config = Config(tmp_path / "config.toml")
    assert config.dtype_of(config.entry("tiny-ocr"), "cpu") == "f32"
