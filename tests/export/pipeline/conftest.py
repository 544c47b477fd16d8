"""A small checkpoint, and the folder that its export goes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.jobs import TINY
from tools.checkpoints import write_random_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path / "checkpoint", TINY)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "f32"
