"""The content of the cache: whole exports, and leftovers of killed ones. Used by models, doctor and prune."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.catalog import DTYPES
from models.layout.manifest import LayoutManifest, load_any
from models.manifest import FILE_NAME, Manifest, restore_retired
from models.model_errors import ConfigError, ManifestError
from models.paths import check_model_id

_VARIANT = re.compile(r"onnx(-[0-9a-f]{8})?")
_LEFTOVER = re.compile(rf"\.({'|'.join(DTYPES)})\.(partial-.*|retired)")


@dataclass(frozen=True)
class Export:
    """One exported folder."""

    folder: Path
    model_id: str
    dtype: str
    size: int  # bytes
    manifest: Manifest | LayoutManifest | None
    problem: str | None  # why the export cannot be used

    @property
    def replaced(self) -> bool:
        """Whether files of the source were replaced (``--weights`` and the like)."""
        return self.folder.parent.name != "onnx"


def models_root(cache: Path) -> Path:
    """The folder of the cache that holds a folder for each model id."""
    return cache / "models"


def find_exports(cache: Path) -> list[Export]:
    """Every folder that is an export, judged by its place and its manifest.json."""
    found = []
    for model_id, onnx in _onnx_folders(models_root(cache)):
        for folder in _folders(onnx):
            if folder.name in DTYPES and (folder / FILE_NAME).is_file():
                manifest, problem = _manifest(folder)
                found.append(Export(folder, model_id, folder.name, folder_size(folder), manifest, problem))
    return found


def find_leftovers(cache: Path) -> list[tuple[Path, Path]]:
    """Leftovers of killed exports, each with the folder that it was to become."""
    found = [
        (folder, onnx / match[1])
        for _, onnx in _onnx_folders(models_root(cache))
        for folder in _folders(onnx)
        if (match := _LEFTOVER.fullmatch(folder.name))
    ]
    for _, target in found:
        restore_retired(target)  # the only copy of an export is no leftover
    return [(folder, target) for folder, target in found if folder.exists()]


def folder_size(folder: Path) -> int:
    """Bytes of all files below; files that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
        except OSError:
            continue
    return total


def gigabytes(size: int) -> str:
    """A size as people read it."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _onnx_folders(root: Path) -> Iterator[tuple[str, Path]]:
    for model in _folders(root):
        try:
            check_model_id(model.name)
        except ConfigError:
            continue
        yield from ((model.name, onnx) for onnx in _folders(model) if _VARIANT.fullmatch(onnx.name))


def _folders(parent: Path) -> list[Path]:
    """Real subfolders only: a link may lead out of the cache."""
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return []


def _manifest(folder: Path) -> tuple[Manifest | LayoutManifest | None, str | None]:
    try:
        return load_any(folder), None
    except ManifestError as error:
        return None, str(error)
