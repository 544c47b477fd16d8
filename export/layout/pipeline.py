"""The export of one layout detector, from source to published folder."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.layout.detectors import DETECTORS, KnownDetector
from models.layout.labels import LABELS
from models.layout.manifest import DetectorImageRules, LayoutManifest
from models.manifest import FILE_NAME, Graph, SourceInfo
from models.model_errors import ManifestError
from models.source_files import describe_files

from .. import publish
from ..checkpoint import Checkpoint
from ..export_errors import ExportError
from ..graphs import graph_file
from ..json_files import read_json
from ..pipeline import file_info, fingerprint_of
from ..source import Source

if TYPE_CHECKING:
    from .loading import Loaded

INSTALL = (
    "pip install 'ocr-onnx[layout]' (on Linux, --extra-index-url https://download.pytorch.org/whl/cpu keeps it small)"
)
GRAPH_VERSION = 1  # version of tracing and rewriting: incremented when exports have to be made anew

_PREPROCESSOR = "preprocessor_config.json"
_SIDE = 800  # pixels, for checkpoints without a size
_STRIDE = 32  # the graph's coarsest grid


@dataclass(frozen=True)
class DetectorJob:
    """A detector's export: source, options and target."""

    source: Source
    target: Callable[[KnownDetector], Path]  # folder of a detector, by the detector that the checkpoint is
    force: bool = False
    wanted: KnownDetector | None = None  # the expected detector; None: any


def export_detector(job: DetectorJob, report: Callable[[str], None]) -> tuple[LayoutManifest, Path]:
    """Trace and publish; does nothing when a good export of the same source is there already.

    Returns the manifest and the folder.

    Raises
    ------
    ExportError
        when the extra is missing, for a source that cannot be read or does not fit its config, too little disk, or a
        graph that fails its check. Whatever was published before stays.
    """
    folder = job.source.folder
    detector = _detector(read_json(folder / "config.json"), folder)
    if job.wanted not in (None, detector):
        raise ExportError(f"{folder} holds {detector.id}, and {job.wanted.id} is wanted; name another source")
    target = job.target(detector)
    with publish.exclusive(target, report):
        publish.sweep(target)
        publish.check_replaceable(target)
        checkpoint = Checkpoint(folder, note=report)
        image = _image_rules(folder / _PREPROCESSOR)
        read = [*checkpoint.files, *(file for file in [folder / _PREPROCESSOR] if file.is_file())]
        fingerprint = fingerprint_of(read, f"layout {GRAPH_VERSION}")
        if not job.force and (present := _present(target, detector, fingerprint)) is not None:
            report(f"{target} is there already; --force exports it again")
            return present, target
        loaded = _load(checkpoint, detector)
        publish.check_disk(target, 2 * checkpoint.nbytes)
        with publish.staged(target) as staged:
            report(f"tracing {detector.id} ({checkpoint.parameter_count / 1e6:,.0f} M parameters); takes minutes")
            from .checking import check_detector
            from .half import write_half
            from .tracing import trace

            trace(loaded, image, staged / graph_file("layout", "cpu"))
            write_half(staged / graph_file("layout", "cpu"), staged / graph_file("layout", "cuda"))
            report("checking the graphs")
            found = check_detector(staged, image, loaded.rules)
            if not found.half_is_right:
                report("float16 finds other boxes than float32 on a drawn page; CUDA is given the graph in float32")
                for file in staged.glob(f"{graph_file('layout', 'cuda')}*"):
                    file.unlink()
            half = found.half_is_right
            manifest = LayoutManifest(
                id=detector.id,
                dtype="f32",
                created_by=f"ocr-onnx {importlib.metadata.version('ocr-onnx')}",
                source=SourceInfo(
                    origin=job.source.origin, name=job.source.name, revision=job.source.revision,
                    fingerprint=fingerprint, files=describe_files(read),
                ),
                parameters=checkpoint.parameter_count,
                layout=Graph(
                    files={"cpu": graph_file("layout", "cpu"), "cuda": graph_file("layout", "cuda" if half else "cpu")},
                    compute={"cpu": "float32", "cuda": "float16" if half else "float32"},
                ),
                labels=LABELS,
                image=image,
                rules=loaded.rules,
                checked=found.checked,
                report=found.report,
                files={file.name: file_info(file, None) for file in sorted(staged.iterdir())},
            )  # fmt: skip
            manifest.save(staged)
        report(f"published {target} ({sum(info.size for info in manifest.files.values()) / 1e9:.2f} GB)")
        return manifest, target


def require_extra() -> None:
    """Check that the packages of the extra are there, before anything is downloaded.

    Raises
    ------
    ExportError
        with the line that installs them.
    """
    try:
        from . import loading, tracing  # noqa: F401 - to find out whether they can be imported
    except ImportError as error:
        raise ExportError(
            f"a layout detector is traced from transformers' module, which needs more packages ({error}); install "
            f"them with: {INSTALL}"
        ) from error


def _load(checkpoint: Checkpoint, detector: KnownDetector) -> Loaded:
    require_extra()
    from .loading import load_detector

    return load_detector(checkpoint, detector)


def _detector(config: dict[str, Any], folder: Path) -> KnownDetector:
    """The detector that a checkpoint is, by its config.json."""
    kind = config.get("model_type")
    for detector in DETECTORS.values():
        if detector.kind == kind:
            return detector
    known = ", ".join(one.kind for one in DETECTORS.values())
    raise ExportError(
        f"{folder / 'config.json'} has model_type {kind!r:.80}, and the layout detectors that can be exported are "
        f"{known}, in transformers' format (PaddlePaddle/...._safetensors); name another folder or hub id"
    )


def _image_rules(file: Path) -> DetectorImageRules:
    """The checkpoint's settings of its input; only the size may differ from the published one."""
    if not file.is_file():
        return DetectorImageRules(height=_SIDE, width=_SIDE)
    said = read_json(file)
    expected = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "do_resize": True, "do_rescale": True}
    for key, value in expected.items():
        if said.get(key, value) != value:
            raise ExportError(f"{file}: {key} is {said[key]!r:.80}; this version prepares pages with {value} only")
    if abs(said.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise ExportError(f"{file}: rescale_factor is {said['rescale_factor']!r:.80}; only 1/255 is supported")
    size = said.get("size", {"height": _SIDE, "width": _SIDE})
    sides = [size.get(side) for side in ("height", "width")] if isinstance(size, dict) else []
    whole = [side for side in sides if isinstance(side, int) and side >= _STRIDE and side % _STRIDE == 0]
    if len(whole) != 2:
        raise ExportError(
            f"{file}: size is {size!r:.80}; height and width have to be multiples of {_STRIDE}, as 800 is"
        )
    return DetectorImageRules(height=whole[0], width=whole[1])


def _present(target: Path, detector: KnownDetector, fingerprint: str) -> LayoutManifest | None:
    """The manifest of a whole export of the very same files, if one is published."""
    if not (target / FILE_NAME).is_file():
        return None
    try:
        manifest = LayoutManifest.load(target)
    except ManifestError:
        return None
    same = (manifest.id, manifest.source.fingerprint) == (detector.id, fingerprint)
    return manifest if same else None
