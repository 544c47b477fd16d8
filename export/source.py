"""Where a checkpoint came from; ``fetching`` finds one, or downloads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine, and where it came from."""

    folder: Path
    name: str  # the hub id, or the directory
    revision: str | None  # the commit; None for a directory
    origin: Literal["directory", "huggingface", "modelscope"]


def of_files(config: Path, weights: Path) -> Source:
    """A checkpoint whose files are all named: nothing is looked for but what lies beside its config.json."""
    return Source(config.expanduser().absolute().parent, str(weights.expanduser().absolute()), None, "directory")
