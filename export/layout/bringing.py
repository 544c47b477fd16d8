"""Which detector an export brings along, and where from: ``--layout`` of a model's export, and a detector by its id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.layout.detectors import DETECTORS, NONE, Detector, detector_of
from models.manifest import FILE_NAME
from models.paths import detector_dir
from models.registration import ModelEntry

from .. import fetching
from ..export_errors import ExportError

Report = Callable[[str], None]


@dataclass(frozen=True)
class Bringing:
    """How detectors are fetched and where they go."""

    cache: Path
    offline: bool
    force: bool
    report: Report

    def detector(self, detector: Detector | None, place: str, revision: str | None, output: Path | None) -> None:
        """Export the checkpoint in ``place``, a folder or a hub id. detector : what it has to be; None: any.

        Raises
        ------
        ExportError
            see ``pipeline.export_detector`` and ``fetching.fetch``.
        """
        from .pipeline import DetectorJob, export_detector, require_extra  # not before help and errors of flags

        require_extra()
        found = fetching.fetch(place, revision, offline=self.offline, report=self.report, cache=self.cache)
        target = lambda one: (output or detector_dir(one, self.cache)).expanduser().resolve()
        export_detector(DetectorJob(found, target, self.force, detector), self.report)

    def asked_for(self, layout: str) -> None:
        """What ``--layout`` says: a folder with a checkpoint, or a detector's name.

        Raises
        ------
        ExportError, ConfigError
            see ``detector``; also for a name that means none.
        """
        if Path(layout).expanduser().is_dir():
            self.detector(None, layout, None, None)
        elif layout != NONE:
            detector = detector_of(layout)
            self.detector(detector, detector.source, None, None)

    def usual(self, entry: ModelEntry, *, from_hub: bool) -> None:
        """The detector of a model's layout step, where nobody said anything of it. What is in its way is told and ends
        nothing: the model itself is exported.

        from_hub : the model came from a hub, so that its detector may be looked for there.
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
    """Look at what ``--layout`` says before the model is exported, which takes minutes.

    Raises
    ------
    ExportError, ConfigError
        where the extra is missing, or for a name that means no detector.
    """
    if layout is None or layout == NONE:
        return
    if not Path(layout).expanduser().is_dir():
        detector_of(layout)
    from .pipeline import require_extra

    require_extra()
