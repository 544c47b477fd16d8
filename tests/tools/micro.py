"""A micro model that stands in for the built-in one. Imported where torch and transformers are known to be there."""

from __future__ import annotations

import torch

from tools.train_tiny.batches import Batch
from tools.train_tiny.curriculum import Canvas, Stage
from tools.train_tiny.model import TinySpec

MICRO = TinySpec(
    base_size=64, image_size=64, sam_width=32, sam_layers=2, sam_mlp=32, sam_window=4, sam_global=(1,), neck=32,
    downsample=(32, 32), clip_layers=1, clip_heads=1, clip_mlp=32, hidden=32, layers=2, heads=1, dense_mlp=32,
    experts=4, shared_experts=2,
)  # fmt: skip
MICRO_STAGES = (
    Stage(2, ((1.0, Canvas(64, 4, (20, 30), 1)),), {"letters": 1.0}, trained="vision"),
    Stage(100, ((1.0, Canvas(64, 4, (20, 30), 1)),), {"letters": 1.0}, learning_rate=3e-3),
)


def same(first: Batch, second: Batch) -> bool:
    """Say whether two batches are equal bit for bit."""
    return torch.equal(first.pixel_values, second.pixel_values) and torch.equal(first.input_ids, second.input_ids)
