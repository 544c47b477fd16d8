"""Detectors exported with a model (``--layout``) or by their own id: which, and from where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.layout.detectors import DETECTORS, NONE, KnownDetector, detector_of
from models.manifest import FILE_NAME
from models.paths import detector_dir
from models.registration import ModelEntry

from .. import fetching
from ..export_errors import ExportError

Report = Callable[[str], None]


@dataclass(frozen=True)
class Bringing:
    """Options of fetching and exporting detectors."""

    cache: Path
    offline: bool
    force: bool
    report: Report

    def detector(self, detector: KnownDetector | None, place: str, revision: str | None, output: Path | None) -> None:
        """Export the checkpoint in ``place``, a folder or a hub id. detector : the expected detector; None: any.

        Raises
        ------
        ExportError
            see ``pipeline.export_detector`` and ``fetching.fetch``.
        """
        from .pipeline import DetectorJob, export_detector, require_extra  # late: help and errors of flags come at once

        require_extra()
        found = fetching.fetch(place, revision, offline=self.offline, report=self.report, cache=self.cache)
        target = lambda one: (output or detector_dir(one, self.cache)).expanduser().resolve()
        export_detector(DetectorJob(found, target, self.force, detector), self.report)

    def asked_for(self, layout: str) -> None:
        """Export the detector of ``--layout``: a folder with a checkpoint, or a detector's name.

        Raises
        ------
        ExportError, ConfigError
            see ``detector``; also for an unknown name.
        """
        if Path(layout).expanduser().is_dir():
            self.detector(None, layout, None, None)
        elif layout != NONE:
            detector = detector_of(layout)
            self.detector(detector, detector.source, None, None)

    def usual(self, entry: ModelEntry, *, from_hub: bool) -> None:
        """Export a model's default detector, without ``--layout``. Failures are only logged: the model is exported.

        from_hub : the model came from a hub, so its detector may, too.
        """
        if entry.layout is None:
            return
        detector = DETECTORS[entry.layout]
        if (detector_dir(detector, self.cache) / FILE_NAME).is_file():
            return
        later = f"whole pages need it; get it with: ocr-onnx export {detector.id}"
        if not from_hub:
            self.report(f"the layout detector {detector.id} was not looked for; {later}")
            return
        try:
            self.detector(detector, detector.source, None, None)
        except (ExportError, OSError) as error:
            self.report(f"the layout detector {detector.id} was not exported; {later}\n{error}")


def check_asked_for(layout: str | None) -> None:
    """Check ``--layout`` before the model's export, which takes minutes.

    Raises
    ------
    ExportError, ConfigError
        where the extra is missing, or for an unknown detector.
    """
    if layout is None or layout == NONE:
        return
    if not Path(layout).expanduser().is_dir():
        detector_of(layout)
    from .pipeline import require_extra

    require_extra()
