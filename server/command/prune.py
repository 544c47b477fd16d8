"""``ocr-onnx prune``: removes exports that nobody needs any more, after saying which.

Only folders of the cache that are exports by their place and their content, or that a killed export left, are ever
touched; those that an exporter or a running model holds are passed over. Exports can be made again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from models.catalog import split_variant
from models.config import Config, UnknownModel, load_config
from models.errors import ConfigError
from models.manifest import lock_file
from models.paths import cache_dir, export_dir

from .errors import CommandFailed, UsageError
from .exports import Export, find_exports, find_leftovers, folder_size, gigabytes

DESCRIPTION = """\
Remove from the cache: what killed exports left, exports that cannot be read, exports of models that config.toml does
not name any more, and exports made from replaced files that it does not name any more. With MODEL_ID: all exports of
those instead.
"""
EXAMPLES = """\
examples:
  ocr-onnx prune                          say what would go, and ask
  ocr-onnx prune deepseek-ocr-q8 --yes    the 8-bit export of DeepSeek-OCR, without a question
  ocr-onnx prune --all --dry-run          how much all exports take
"""


@dataclass(frozen=True)
class Candidate:
    """One folder that could go."""

    folder: Path
    target: Path  # the export folder whose lock guards it
    size: int  # bytes
    reason: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="*", default=[], metavar="MODEL_ID", help="remove the exports of these models")
    parser.add_argument("--all", action="store_true", default=False, help="remove all exports")
    parser.add_argument("--yes", action="store_true", default=False, help="do not ask")
    parser.add_argument("--dry-run", action="store_true", default=False, help="only say what would go")
    parser.add_argument(
        "--config", type=Path, metavar="PATH", default=None, help="config.toml (default: the platform's place)"
    )


def run(given: Mapping[str, Any]) -> int:
    """Say what would go, ask, remove. Returns 1 when a folder could not be removed.

    Raises
    ------
    CommandFailed, UsageError
        when config.toml cannot be read, a model has no export, or there is nobody to ask.
    """
    try:
        config = load_config(given["config"])
    except ConfigError as error:
        raise CommandFailed(str(error)) from error
    candidates = list(_candidates(config, given["models"], given["all"]))
    kept = {one.folder: reason for one in candidates if (reason := _in_use(one)) is not None}
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
    for folder, target in find_leftovers():
        yield Candidate(folder, target, folder_size(folder), "left by an export that did not end")
    exports = find_exports()
    for model_id in model_ids:
        if not any(_is_meant(config, export, model_id) for export in exports):
            raise UsageError(f"model {model_id!r} has no export; ocr-onnx models lists what there is")
    for export in exports:
        if everything or any(_is_meant(config, export, model_id) for model_id in model_ids):
            reason: str | None = f"asked for: {export.model_id}, {export.dtype}"
        else:
            reason = None if model_ids else _needless(config, export)
        if reason is not None:
            yield Candidate(export.folder, export.folder, export.size, reason)


def _is_meant(config: Config, export: Export, model_id: str) -> bool:
    """Whether an id means the export: its own, or that of its variant (deepseek-ocr-q8)."""
    if export.model_id == model_id:
        return True
    variant = split_variant(model_id)
    return variant is not None and config.is_variant(model_id) and variant == (export.model_id, export.dtype)


def _needless(config: Config, export: Export) -> str | None:
    """Why nobody needs an export; None when somebody may."""
    if export.problem is not None:
        return f"cannot be used: {export.problem}"
    try:
        entry = config.entry(export.model_id)
    except UnknownModel:
        return "config.toml does not name this model any more"
    try:
        current = export_dir(entry, export.dtype)
    except ConfigError:  # a replacement file that config.toml names is not there: nobody can tell
        return None
    if export.replaced and current != export.folder:
        return "made from replaced files that config.toml does not name, or that have changed"
    return None


def _in_use(candidate: Candidate) -> str | None:
    """Who needs the folder now, as far as this user can see."""
    root = cache_dir().resolve()
    if not candidate.folder.resolve().is_relative_to(root / "models"):
        return "it is not in the cache"
    try:
        with FileLock(lock_file(candidate.target)).acquire(timeout=0):
            pass
    except Timeout:
        return "an export is working on it"
    except OSError as error:
        return f"it cannot be locked: {error}"
    for process in psutil.process_iter():
        try:
            paths = {one.path for one in process.memory_maps()} | {one.path for one in process.open_files()}
        except (psutil.Error, OSError, AttributeError):
            continue  # another user's, ended meanwhile, or not told on this system
        if any(Path(path).is_relative_to(candidate.folder.resolve()) for path in paths if path.startswith("/")):
            return f"process {process.pid} has it open; stop it first"
    return None


def _remove(candidate: Candidate) -> bool:
    """Move the folder aside, so that nobody finds half of it, and delete it."""
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
    return input("Remove these? [y/N] ").strip().lower() in ("y", "yes")
