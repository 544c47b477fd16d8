"""Batches rendered beforehand, one compressed file a step, so that a rented GPU trains and does not wait for pages.

`python -m tools.train_tiny pack` writes them in as many processes as there are cores; `train --packed` reads them.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .batches import Batch, Pages
from .curriculum import Trained

ARRAYS = ("input_ids", "labels", "probe", "pixel_values")
NOTE = "pages.json"


class WrongPages(RuntimeError):
    """The folder does not hold the batches that are asked for."""


def fingerprint(pages: Pages) -> dict[str, object]:
    """Return what decides how batches look: seed, size, model sizes and curriculum."""
    recipe = repr((pages.spec, pages.stages)).encode()
    return {"seed": pages.seed, "scale": pages.scale, "recipe": zlib.crc32(recipe)}


def file_of(folder: Path, step: int) -> Path:
    """Return where the batch of a step lies."""
    return folder / f"{step:07}.npz"


@dataclass
class Writer(Dataset[int]):
    """Renders and writes the batch of a step when it is asked for; what is there already stays."""

    pages: Pages
    folder: Path

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, step: int) -> int:
        target = file_of(self.folder, step)
        if not target.exists():
            batch = self.pages[step]
            arrays = {name: getattr(batch, name).numpy() for name in ARRAYS}
            if batch.pixel_values_local is not None:
                arrays["tiles"] = batch.pixel_values_local.numpy()
            arrays["grids"] = np.array(batch.patches_grid)
            arrays["counts"] = np.array(batch.num_local_patches)
            work = target.with_suffix(".tmp")
            with work.open("wb") as file:
                np.savez_compressed(file, trained=np.array(batch.trained), **arrays)
            work.replace(target)
        return step


def pack(pages: Pages, folder: Path, first_step: int, last_step: int, workers: int) -> None:
    """Write the batches of the steps [first_step, last_step) that are not there yet, in `workers` processes.

    Raises WrongPages where the folder holds batches of another seed or curriculum.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / NOTE
    if note.exists():
        check(pages, folder)
    note.write_text(json.dumps(fingerprint(pages)), encoding="utf-8")
    loader = DataLoader(
        Writer(pages, folder), batch_size=None, sampler=range(first_step, last_step), num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip
    for _ in loader:
        pass


def check(pages: Pages, folder: Path) -> None:
    """Raise WrongPages unless the folder holds batches of this seed and curriculum."""
    note = folder / NOTE
    if not note.exists():
        raise WrongPages(f"{folder} holds no packed pages; write them with python -m tools.train_tiny pack")
    found = json.loads(note.read_text(encoding="utf-8"))
    if found != fingerprint(pages):
        raise WrongPages(
            f"the pages in {folder} are of another curriculum, model, seed or scale ({found}, wanted "
            f"{fingerprint(pages)}); pack into another folder"
        )


class Packed(Dataset[Batch]):
    """Packed batches by step number.

    Raises WrongPages where the folder does not hold batches of this seed and curriculum, or lacks a step.
    """

    def __init__(self, pages: Pages, folder: Path) -> None:
        check(pages, folder)
        self.folder, self.length = folder, len(pages)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> Batch:
        path = file_of(self.folder, step)
        if not path.exists():
            raise WrongPages(f"{self.folder} has no batch for step {step}; pack more steps, or train fewer")
        with np.load(path) as arrays:
            return Batch(
                **{name: torch.from_numpy(arrays[name]) for name in ARRAYS},
                pixel_values_local=torch.from_numpy(arrays["tiles"]) if "tiles" in arrays else None,
                num_local_patches=arrays["counts"].tolist(),
                patches_grid=arrays["grids"].tolist(),
                trained=cast(Trained, str(arrays["trained"])),
            )
