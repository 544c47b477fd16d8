"""A checkpoint on this machine; ``fetching`` finds or downloads one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine, and its origin."""

    folder: Path
    name: str  # the hub id, or the directory
    revision: str | None  # the commit; None for a directory
    origin: Literal["directory", "huggingface", "modelscope"]


def of_files(config: Path, weights: Path) -> Source:
    """A checkpoint whose files are all given; other files are looked for beside its config.json only."""
    return Source(config.expanduser().absolute().parent, str(weights.expanduser().absolute()), None, "directory")
