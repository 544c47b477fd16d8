"""``ocr-onnx unpack``: checks a file of ``pack`` and puts its export into the cache, whole or not at all.

The file comes from another machine and is not trusted: only plain files with the names and sizes of its manifest are
written, and the export is published after every hash has been compared.
"""

from __future__ import annotations

import argparse
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from models.arguments import add_config_flags, read_config
from models.catalog import CATALOG
from models.config import Config
from models.layout.detectors import DETECTORS
from models.layout.manifest import load_any, peek_any
from models.manifest import FILE_NAME, lock_file, retired_folder
from models.model_errors import ConfigError, ManifestError
from models.paths import check_model_id

from .command_errors import CommandFailed
from .exports import gigabytes

DESCRIPTION = "Put the export of a file that ocr-onnx pack has written into the cache, after comparing every hash."
EXAMPLES = """\
examples:
  ocr-onnx unpack deepseek.tar && ocr-onnx serve --model deepseek-ocr-q4
"""

_LARGEST_MANIFEST = 16 << 20  # bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="what ocr-onnx pack has written")
    parser.add_argument("--force", action="store_true", help="replace an export that is there already")
    add_config_flags(parser)


def run(given: Mapping[str, Any]) -> int:
    """Unpack, check and publish.

    Raises
    ------
    CommandFailed
        for a file that is damaged or not from ``pack``, or an export that is there already.
    """
    file: Path = given["file"].expanduser()
    try:
        config = read_config(given)
        with tarfile.open(file, "r:") as tar:
            target = _unpack(tar, config, file, force=given.get("force", False))
    except tarfile.TarError as error:
        raise CommandFailed(f"{file} is no whole file of ocr-onnx pack: {error}") from error
    except (ConfigError, ManifestError) as error:
        raise CommandFailed(f"{file}: {error}") from error
    print(f"unpacked to {target}")
    model_id = target.parents[1].name
    if model_id not in (*CATALOG, *DETECTORS, *config.entries):
        print(f"config.toml has no [models.entries.{model_id}] yet; the model can be asked for when it has")
    return 0


def _unpack(tar: tarfile.TarFile, config: Config, file: Path, *, force: bool) -> Path:
    root = config.cache_dir / "models"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=root) as place:
        folder = Path(place) / "export"
        folder.mkdir()
        _take_files(tar, folder, file)
        manifest = load_any(folder)
        manifest.verify(folder)
        target = root / check_model_id(manifest.id) / "onnx" / manifest.dtype
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock_file(target)).acquire(timeout=0):
                _publish(folder, target, force=force)
        except Timeout:
            raise CommandFailed(f"an export is writing {target}; try again when it has ended") from None
    return target


def _take_files(tar: tarfile.TarFile, folder: Path, file: Path) -> None:
    """Write the members of the tar: the first, the manifest, says which others there may be."""
    allowed: dict[str, int] = {FILE_NAME: _LARGEST_MANIFEST}
    for number, member in enumerate(tar):
        name = PurePosixPath(member.name).name
        if not member.isreg() or name not in allowed or (number == 0) != (name == FILE_NAME):
            raise CommandFailed(f"{file} is no file of ocr-onnx pack: it holds {member.name!r:.120}")
        if member.size > allowed[name]:
            raise CommandFailed(f"{file}: {name} has {member.size} bytes, and may have {allowed[name]}")
        source = tar.extractfile(member)
        assert source is not None  # a plain file, as checked above
        with source, (folder / name).open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        if number == 0:
            allowed |= {name: info.size for name, info in peek_any(folder).files.items()}
            needed, free = sum(allowed.values()), shutil.disk_usage(folder).free
            if free < needed:
                raise CommandFailed(f"the cache has {gigabytes(free)} free, and the export needs {gigabytes(needed)}")


def _publish(folder: Path, target: Path, *, force: bool) -> None:
    """Move the finished folder to its place."""
    if target.exists() and not force:
        raise CommandFailed(f"{target} is there already; --force replaces it")
    retired = retired_folder(target)
    if target.exists():
        shutil.rmtree(retired, ignore_errors=True)
        target.rename(retired)
    folder.rename(target)
    shutil.rmtree(retired, ignore_errors=True)
