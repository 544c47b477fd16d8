"""From a detector's name or folder to its exported folder. Exporting a detector takes an extra, and is not done
here."""

from __future__ import annotations

import os
from pathlib import Path

from models.config import load_config
from models.layout.detectors import KnownDetector, detector_of
from models.manifest import FILE_NAME, restore_retired
from models.model_errors import ManifestError
from models.paths import detector_dir

INSTALL = "pip install 'ocr-onnx[layout]'"


def detector_folder(detector: str | os.PathLike[str], cache: Path | None = None) -> Path:
    """The folder of a detector's export, given as a folder or as a name, which is looked up in the cache.

    cache : None for the cache that config.toml and the environment name.

    Raises
    ------
    ManifestError
        when there is no such export; the message has the command that makes it.
    ConfigError
        for a name that means no detector.
    """
    folder = Path(detector).expanduser()
    if folder.is_dir() or isinstance(detector, os.PathLike) or os.sep in str(detector):
        return folder
    known = detector_of(str(detector))
    folder = detector_dir(known, cache or load_config().cache_dir)
    restore_retired(folder)
    if not (folder / FILE_NAME).is_file():
        raise ManifestError(f"{missing(known)} (looked for {folder})")
    return folder


def missing(detector: KnownDetector) -> str:
    """The message for a detector that has no export."""
    return (
        f"the layout detector {detector.id} is not exported here; make it with: ocr-onnx export {detector.id} "
        f"(it needs {INSTALL}), or bring it from another machine with ocr-onnx pack {detector.id}"
    )
