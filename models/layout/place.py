"""The place of a model's detector, and the message where there is none yet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from models.manifest import FILE_NAME
from models.paths import detector_dir
from models.registration import ModelEntry

from .detectors import NONE, detector_of


def with_detector(entry: ModelEntry, cache: Path) -> ModelEntry:
    """The entry with the folder of its detector, whether that has been exported or not.

    Raises
    ------
    ConfigError
        for an unknown detector.
    """
    return replace(entry, detector=None if entry.layout in (None, NONE) else detector_folder(entry.layout, cache))


def has_detector(entry: ModelEntry) -> bool:
    """Whether a model has a detector, and the detector is exported."""
    return entry.detector is not None and (entry.detector / FILE_NAME).is_file()


def detector_folder(layout: str, cache: Path) -> Path:
    """The folder of a detector's export: ``layout`` itself, or the folder in the cache for a name."""
    return Path(layout).expanduser() if is_folder(layout) else detector_dir(detector_of(layout), cache)


def without_detector(entry: ModelEntry) -> str:
    """The message about a model without a detector, or with one that is not exported yet."""
    if entry.layout in (None, NONE):
        return (
            f"model {entry.id} has no layout step, which the task document needs; config.toml gives it one: "
            f'layout = "v3" under [models.entries.{entry.id}]'
        )
    if is_folder(entry.layout):
        return f"the task document needs the layout detector of model {entry.id}, and {entry.layout} holds no export"
    return (
        f"the task document needs the layout detector of model {entry.id}, which is not exported here; make it with: "
        f"ocr-onnx export {detector_of(entry.layout).id}"
    )


def is_folder(layout: str) -> bool:
    """Whether a model's ``layout`` is a folder, and not the name of a detector."""
    return any(sign in layout for sign in "/\\~.")
