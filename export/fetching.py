"""Finds a checkpoint: a directory on this machine, or a model of a hub, which is downloaded (see ``hub``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .export_errors import ExportError
from .source import Source

_PATH_START = (".", "/", "~", "\\")


def fetch(
    source: str, revision: str | None = None, *, offline: bool = False, report: Callable[[str], None], cache: Path,
    replaced: Sequence[str] = (),
) -> Source:  # fmt: skip
    """Find a checkpoint, or download it.

    ``source`` is a directory or a hub id, ``revision`` a branch, tag or commit; ``cache`` is where ModelScope's files
    go (Hugging Face's go to that hub's own cache, which other programs share). ``replaced`` : patterns of files that
    the user replaces, and that are not needed.

    Raises
    ------
    ExportError
        for a missing directory, and as ``hub.fetch``.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return Source(folder.resolve(), str(folder.resolve()), None, "directory")
    if source.startswith(_PATH_START) or folder.is_absolute():
        raise ExportError(f"{folder} is {'a file, not' if folder.exists() else 'no'} directory; --source wants a "
                          "directory with config.json and *.safetensors, or a hub id")  # fmt: skip
    try:
        from . import hub
    except ImportError as error:
        raise ExportError(
            f"downloading {source} needs more packages ({error}); install them with: pip install 'ocr-onnx[export]', "
            "or name a directory that has the model with --source"
        ) from error
    return hub.fetch(source, revision, offline=offline, report=report, cache=cache, replaced=replaced)
