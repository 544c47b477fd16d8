"""Whether an export's source has changed: the exporter records the files that it read, and loading compares them.

Only small files are hashed: reading gigabytes at every start would cost too much. A large file with another time counts
as changed, so that a file copied without its time is reported needlessly, but no change is missed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .manifest import SourceFile, SourceInfo
from .registration import ModelEntry

_SMALL = 64 << 20  # bytes
_SINGLE = "model.safetensors"  # wins over an index and its shards, even where this file is the newer one


def describe_files(files: Iterable[Path]) -> dict[str, SourceFile]:
    """Size, time and, of small files, hash of each file, by absolute path."""
    return {str(file.absolute()): _describe(file) for file in dict.fromkeys(files)}


def difference(source: SourceInfo, entry: ModelEntry) -> str | None:
    """How the source that an entry names differs from the source of an export.

    None where both are the same, or the source is not on this machine.
    """
    if entry.config and entry.tokenizer and entry.weights:
        return None  # every file is named, and the export's folder changes with them
    folder = Path(entry.source).expanduser()
    if folder.is_dir():
        if source.origin != "directory":
            return f"it was exported from {_named(source)}; its entry says {folder}"
        return _changed(source, folder.resolve())
    if source.origin == "directory" or source.name != entry.source:
        same = source.origin == "directory" and Path(source.name) == folder.absolute()
        if same:
            return None
        keep = f"to keep it, set source = '{source.name}' in [models.entries.\"{entry.id}\"] of config.toml"
        return f"it was exported from {_named(source)}; its entry says {entry.source} ({keep})"
    wanted = _commit(entry)
    if wanted is None or source.revision is None or source.revision == wanted:
        return None
    return f"it was exported from {_named(source)}; revision {wanted} is wanted now"


def _changed(source: SourceInfo, folder: Path) -> str | None:
    """The first file of the folder that differs from what the exporter read."""
    made_from = Path(source.name)
    if not source.files:  # an older version's export, which names only the folder
        return None if made_from.name == folder.name else f"it was exported from {made_from}; its entry says {folder}"
    read = {path.relative_to(made_from): of for path, of in _within(source.files, made_from)}
    for name, was in read.items():
        file = folder / name
        if file.is_file() and (how := _how(file, was)):
            elsewhere = "" if folder == made_from else f"it was exported from {made_from}, and "
            return f"{elsewhere}{file} {how}"
    shards = [name for name in read if name.suffix == ".safetensors"]
    if shards and Path(_SINGLE) not in shards and (folder / _SINGLE).is_file():
        return f"{folder / _SINGLE} has come since, and is what would be read now"
    return None


def _within(files: Mapping[str, SourceFile], folder: Path) -> Iterable[tuple[Path, SourceFile]]:
    return ((Path(path), of) for path, of in files.items() if Path(path).is_relative_to(folder))


def _how(file: Path, was: SourceFile) -> str | None:
    status = file.stat()
    if status.st_size != was.size:
        return f"has {status.st_size} bytes now, and had {was.size} then"
    if status.st_mtime_ns == was.modified_ns:
        return None
    if was.sha256 is not None:
        return None if _describe(file).sha256 == was.sha256 else "has another content now"
    return "has been written since" if status.st_mtime_ns > was.modified_ns else "is another, older file now"


def _describe(file: Path) -> SourceFile:
    status = file.stat()
    sha256 = None
    if status.st_size <= _SMALL:
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    return SourceFile(size=status.st_size, modified_ns=status.st_mtime_ns, sha256=sha256)


def _commit(entry: ModelEntry) -> str | None:
    """The commit that a hub entry means: the pinned one, or its branch's in the hub's cache."""
    if entry.revision is not None and re.fullmatch(r"[0-9a-f]{40}", entry.revision):
        return entry.revision
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    ref = cache / f"models--{entry.source.replace('/', '--')}" / "refs" / (entry.revision or "main")
    try:
        return ref.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def _named(source: SourceInfo) -> str:
    return f"{source.name}{f' at {source.revision}' if source.revision else ''}"
