"""What contenders are measured on, and one measure of theirs: a page, a copy of an export, the process's memory."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from models.manifest import FILE_NAME, Manifest

from .plan import Plan


def endless_copy(folder: Path, target: Path) -> Path:
    """A copy of an export whose answers end at their budget only: its manifest names no end token.

    Random weights end an answer anywhere, and then page times would not compare. Large files are hard links.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        copy = target / file.name
        copy.unlink(missing_ok=True)
        if file.name == FILE_NAME:
            continue
        try:
            os.link(file, copy)
        except OSError:  # another file system, or one without links
            shutil.copyfile(file, copy)
    manifest = Manifest.load(folder)
    manifest.model_copy(update={"tokens": manifest.tokens.model_copy(update={"eos": ()})}).save(target)
    return target


def page_image(plan: Plan, seed: int | None = None) -> Image.Image:
    """Dark lines on white paper; without a seed another page each time, or a cache of features would answer."""
    width, height = plan.page
    rng = np.random.default_rng(seed)
    paper = np.full((height, width, 3), 255, np.uint8)
    for top in range(height // 20, height - height // 20, 28):
        ink = rng.random((14, width - 2 * (width // 12))) < 0.4
        paper[top : top + 14, width // 12 : width - width // 12][ink[: paper[top : top + 14].shape[0]]] = 20
    return Image.fromarray(paper)


def peak_memory() -> float:
    """Largest resident memory of this process so far, GB; mapped files count."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
