"""Layout detectors as tests export them. Imported where torch, transformers and optimum are known to be there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from export.checkpoint import Checkpoint
from export.layout.loading import load_detector
from export.layout.pipeline import DetectorJob
from export.source import Source
from models.layout.detectors import DETECTORS
from models.layout.manifest import LayoutManifest


@dataclass(frozen=True)
class Exported:
    """A detector, before and after."""

    checkpoint: Path
    folder: Path
    manifest: LayoutManifest

    @property
    def module(self) -> Any:
        """transformers' module, as it comes from the checkpoint."""
        return load_detector(Checkpoint(self.checkpoint), DETECTORS[self.manifest.id]).model

    def session(self, provider: str = "cpu") -> ort.InferenceSession:
        return ort.InferenceSession(self.folder / self.manifest.layout.files[provider])


def job(folder: Path, cache: Path, **options: Any) -> DetectorJob:
    return DetectorJob(
        Source(folder, str(folder), None, "directory"), lambda detector: cache / detector.id / "onnx" / "f32", **options
    )
