"""``ocr-onnx pack``: an export as one file, for a machine without a network that only serves.

The file is a plain tar: first ``manifest.json``, which has the hash of every other file, then the others. ``unpack``
checks the hashes.
"""

from __future__ import annotations

import argparse
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.arguments import add_config_flags, read_config
from models.catalog import DTYPES, split_variant
from models.config import Config
from models.layout.manifest import load_any
from models.manifest import FILE_NAME
from models.model_errors import ConfigError, ManifestError
from models.nearest import did_you_mean

from .command_errors import CommandFailed, UsageError
from .exports import find_exports, gigabytes

DESCRIPTION = """\
Write an export of MODEL into one file, with the hash of every file in it. On the machine that is to serve it:
ocr-onnx unpack FILE.tar
"""
EXAMPLES = """\
examples:
  ocr-onnx pack deepseek-ocr-q4 -o deepseek.tar
  ocr-onnx pack deepseek-ocr --dtype q8 -o /media/stick/deepseek.tar
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model id, or the folder of an export")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help="the file to write")
    parser.add_argument("--dtype", choices=DTYPES, help="which export, where the model has several")
    add_config_flags(parser)


def run(given: Mapping[str, Any]) -> int:
    """Check the export, and write the file.

    Raises
    ------
    CommandFailed, UsageError
        when there is no such export, or the export is damaged.
    """
    try:
        folder = _folder(read_config(given), given["model"], given.get("dtype"))
        manifest = load_any(folder)
        manifest.verify(folder)
    except (ConfigError, ManifestError) as error:
        raise CommandFailed(str(error)) from error
    output: Path = given["output"].expanduser()
    partial = output.with_name(f".{output.name}.partial")
    try:
        with tarfile.open(partial, "w") as tar:
            for name in (FILE_NAME, *manifest.files):
                tar.add(folder / name, f"{manifest.id}-{manifest.dtype}/{name}", recursive=False)
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{output}: {manifest.id} {manifest.dtype}, {gigabytes(output.stat().st_size)}")
    return 0


def _folder(config: Config, model: str, dtype: str | None) -> Path:
    """The one export that the arguments mean."""
    if (Path(model).expanduser() / FILE_NAME).is_file():
        return Path(model).expanduser()
    variant = split_variant(model) if config.is_variant(model) else None
    wanted, dtype = variant if variant and dtype is None else (model, dtype)
    exports = find_exports(config.cache_dir)
    found = [one for one in exports if one.model_id == wanted and dtype in (None, one.dtype)]
    if not found:
        near = did_you_mean(wanted, {one.model_id for one in exports})
        raise UsageError(f"model {model!r} has no export{near}; ocr-onnx models lists what there is")
    if len(found) > 1:
        listed = ", ".join(str(one.folder) for one in found)
        raise UsageError(f"model {wanted!r} has several exports; choose with --dtype, or name one's folder: {listed}")
    return found[0].folder
