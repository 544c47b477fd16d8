"""``ocr-onnx prune``: names exports that are not needed any more, and removes them.

Touches only folders of the cache that are exports by place and content, or that a killed export left; skips those in
use by an exporter or a running model. Exports can be made again.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from models.arguments import add_config_flags, read_config
from models.catalog import split_variant
from models.config import Config, UnknownModel
from models.layout.detectors import DETECTORS
from models.manifest import lock_file
from models.model_errors import ConfigError

from .command_errors import CommandFailed, UsageError
from .exports import Export, find_exports, find_leftovers, folder_size, gigabytes, models_root

DESCRIPTION = """\
Remove from the cache: what killed exports left, exports that cannot be read, exports of models that config.toml does
not name any more, and exports made from replaced files that it does not name any more. With MODEL_ID: all exports of
those, and what killed exports left of them, instead.
"""
EXAMPLES = """\
examples:
  ocr-onnx prune                          say what would go, and ask
  ocr-onnx prune deepseek-ocr-q8 --yes    the 8-bit export of DeepSeek-OCR, without a question
  ocr-onnx prune --all --dry-run          how much all exports take
"""


@dataclass(frozen=True)
class Candidate:
    """One folder that could be removed."""

    folder: Path
    target: Path  # the export folder whose lock guards it
    size: int  # bytes
    reason: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="*", default=[], metavar="MODEL_ID", help="remove the exports of these models")
    parser.add_argument("--all", action="store_true", default=False, help="remove all exports")
    parser.add_argument("--yes", action="store_true", default=False, help="do not ask")
    parser.add_argument("--dry-run", action="store_true", default=False, help="only say what would go")
    add_config_flags(parser)


def run(given: Mapping[str, Any]) -> int:
    """Name the folders, ask, and remove them. Returns 1 when a folder could not be removed.

    Raises
    ------
    CommandFailed, UsageError
        when config.toml cannot be read, a model has no export, or there is no terminal to ask on.
    """
    try:
        config = read_config(given)
    except ConfigError as error:
        raise CommandFailed(str(error)) from error
    candidates = list(_candidates(config, given["models"], given["all"]))
    root, held = models_root(config.cache_dir), _held_files() if candidates else {}
    kept = {one.folder: reason for one in candidates if (reason := _in_use(one, root, held)) is not None}
    going = [one for one in candidates if one.folder not in kept]
    for one in going:
        print(f"{gigabytes(one.size):>10}  {one.folder}\n{'':>12}{one.reason}")
    for folder, reason in kept.items():
        print(f"{'kept':>10}  {folder}\n{'':>12}{reason}")
    if not going:
        print("nothing to remove")
        return 0
    print(f"{gigabytes(sum(one.size for one in going)):>10}  in all")
    if given["dry_run"] or not (given["yes"] or _agrees()):
        print("nothing was removed")
        return 0
    failures = [one for one in going if not _remove(one)]
    return 1 if failures else 0


def _candidates(config: Config, model_ids: list[str], everything: bool) -> Iterator[Candidate]:
    leftovers = [
        (folder, target, (target.parents[1].name, target.name)) for folder, target in find_leftovers(config.cache_dir)
    ]
    exports = find_exports(config.cache_dir)
    there = {(export.model_id, export.dtype) for export in exports} | {variant for _, _, variant in leftovers}
    meant: set[tuple[str, str]] = set()
    for model_id in model_ids:
        found = {variant for variant in there if _is_meant(config, variant, model_id)}
        if not found:
            raise UsageError(f"model {model_id!r} has no export; ocr-onnx models lists what there is")
        meant |= found
    for folder, target, variant in leftovers:
        if everything or not model_ids or variant in meant:
            yield Candidate(folder, target, folder_size(folder), "left by an export that did not end")
    for export in exports:
        if everything or (export.model_id, export.dtype) in meant:
            reason: str | None = f"asked for: {export.model_id}, {export.dtype}"
        else:
            reason = None if model_ids else _needless(config, export)
        if reason is not None:
            yield Candidate(export.folder, export.folder, export.size, reason)


def _is_meant(config: Config, variant: tuple[str, str], model_id: str) -> bool:
    """Whether an id means the exports of a model in a dtype: the model's own, or its variant's (deepseek-ocr-q8)."""
    return variant[0] == model_id or (config.is_variant(model_id) and split_variant(model_id) == variant)


def _needless(config: Config, export: Export) -> str | None:
    """Why an export is not needed; None when it may be."""
    if export.problem is not None:
        return f"cannot be used: {export.problem}"
    if export.model_id in DETECTORS:
        return None
    try:
        entry = config.entry(export.model_id)
    except UnknownModel:
        return "config.toml does not name this model any more"
    try:
        current = config.export_dir(entry, export.dtype)
    except ConfigError:  # a replacement file that config.toml names is missing: keep the export
        return None
    if export.replaced and current != export.folder:
        return "made from replaced files that config.toml does not name, or that have changed"
    return None


def _held_files() -> dict[str, int]:
    """Files that processes have open or mapped now, as far as this user can see, each with such a process's id."""
    held: dict[str, int] = {}
    for process in psutil.process_iter():
        unknown = (psutil.Error, OSError, AttributeError)  # another user's, an ended one, or hidden on this system
        with contextlib.suppress(*unknown):
            held |= {one.path: process.pid for one in process.memory_maps()}
        with contextlib.suppress(*unknown):
            held |= {one.path: process.pid for one in process.open_files()}
    return held


def _in_use(candidate: Candidate, root: Path, held: Mapping[str, int]) -> str | None:
    """Who uses the folder: an exporter, or a process that has one of the held files."""
    if not candidate.folder.resolve().is_relative_to(root.resolve()):
        return "it is not in the cache"
    try:
        with FileLock(lock_file(candidate.target)).acquire(timeout=0):
            pass
    except Timeout:
        return "an export is working on it"
    except OSError as error:
        return f"it cannot be locked: {error}"
    folder = candidate.folder.resolve()
    for path, pid in held.items():
        if path.startswith("/") and Path(path).is_relative_to(folder):
            return f"process {pid} has it open; stop it first"
    return None


def _remove(candidate: Candidate) -> bool:
    """Move the folder aside, so that no program finds half of it, and delete it."""
    try:
        with FileLock(lock_file(candidate.target)).acquire(timeout=0):
            aside = candidate.target.parent / f".{candidate.target.name}.partial-pruned"
            if candidate.folder != aside:
                shutil.rmtree(aside, ignore_errors=True)
                candidate.folder.rename(aside)
            shutil.rmtree(aside)
    except Timeout:
        print(f"kept: {candidate.folder}: an export has begun to work on it", file=sys.stderr)
        return False
    except OSError as error:
        print(f"cannot remove {candidate.folder}: {error}", file=sys.stderr)
        return False
    print(f"removed {candidate.folder}")
    return True


def _agrees() -> bool:
    if not sys.stdin.isatty():
        raise UsageError("there is nobody to ask; say --yes to remove these, or --dry-run to see them only")
    try:
        return input("Remove these? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        print()
        return False
