"""Where a checkpoint comes from: a directory on this machine, or a hub (see ``hub``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import ExportError

_PATH_START = (".", "/", "~", "\\")


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine, and where it came from."""

    folder: Path
    name: str  # the hub id, or the directory
    revision: str | None  # the commit; None for a directory
    origin: Literal["directory", "huggingface", "modelscope"]


def of_files(config: Path, weights: Path) -> Source:
    """A checkpoint whose files are all named: nothing is looked for but what lies beside its config.json."""
    return Source(config.expanduser().absolute().parent, str(weights.expanduser().absolute()), None, "directory")


def fetch(
    source: str, revision: str | None = None, *, offline: bool = False, report: Callable[[str], None], cache: Path,
    replaced: Sequence[str] = (),
) -> Source:  # fmt: skip
    """Find a checkpoint, or download it.

    ``source`` is a directory or a hub id, ``revision`` a branch, tag or commit; ``cache`` is where ModelScope's files
    go (Hugging Face's go to that hub's own cache, which other programs share). ``replaced`` : patterns of files that
    the user names others for, so that these are not needed.

    Raises
    ------
    ExportError
        for a directory that is not there, or whatever ``hub.fetch`` raises.
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
