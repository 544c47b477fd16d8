"""Publishing an export whole or not at all: lock, disk check, temporary folder, rename.

<model folder>/onnx/.f32.lock          held by the export that works on it
<model folder>/onnx/.f32.partial-XXXX  the folder being written; swept by the next export
<model folder>/onnx/f32                the finished export, swapped in by rename
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from models.manifest import FILE_NAME, lock_file, retired_folder

from .export_errors import ExportError

SPARE_BYTES = 64 << 20  # graphs, tokenizer and manifest beside the weights


@contextmanager
def exclusive(target: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the export lock of a target folder; when another process holds it, say so and wait.

    The operating system frees the lock of a dead process.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file(target))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"another export is writing {target}; waiting for it to finish")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sweep(target: Path) -> None:
    """Remove leftovers of killed exports of this target, and finish or undo an interrupted swap."""
    retired = retired_folder(target)
    if retired.exists():
        if target.exists():
            shutil.rmtree(retired)
        else:
            retired.rename(target)
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        shutil.rmtree(leftover)


def check_replaceable(target: Path) -> None:
    """Refuse to replace a target that is no export.

    Raises
    ------
    ExportError
        when there is a file, or a folder that holds something other than an export.
    """
    if not target.exists():
        return
    manifest = target / FILE_NAME
    if not target.is_dir():
        raise ExportError(f"{target} is a file; name a folder with --output")
    ours = manifest.is_file() and (b"ocr-onnx" in manifest.read_bytes() or (target / "decoder.onnx").is_file())
    if not ours and any(target.iterdir()):
        raise ExportError(
            f"{target} holds files that no export made and that publishing would delete; "
            "name a new or an empty folder with --output"
        )


def check_disk(target: Path, needed: int) -> None:
    """Check that the disk has room for an export.

    Raises
    ------
    ExportError
        with both numbers, when there is too little.
    """
    needed += SPARE_BYTES
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise ExportError(
            f"{target.parent} has {free / 1e9:.2f} GB free and the export needs {needed / 1e9:.2f} GB; "
            "free some space or choose another place with --output"
        )


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A temporary folder that replaces ``target`` when the block ends without an error, and is removed otherwise."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        yield folder
        sync(folder)
        _swap(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` for unpublished files; ``sweep`` removes it after a crash."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _swap(folder: Path, target: Path) -> None:
    """Rename over ``target``. A folder with files cannot be replaced in one step: the old one moves aside first."""
    folder.chmod(0o755)
    retired = retired_folder(target)
    if target.exists():
        target.rename(retired)
    try:
        folder.rename(target)
    except OSError:
        if retired.exists():
            retired.rename(target)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def sync(folder: Path) -> None:
    """Flush the files, so that a power cut after the rename does not leave empty ones."""
    for file in folder.iterdir():
        with file.open("r+b") as opened:  # Windows flushes only files opened for writing
            os.fsync(opened.fileno())
