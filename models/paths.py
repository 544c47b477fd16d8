"""Where files live on each platform: config.toml, and the cache with the exported models.

The places are deepseek-ocr.rs's, so that a user of that program finds the same file in the same place.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import platformdirs
from platformdirs.api import PlatformDirsABC

from .catalog import DTYPES
from .layout.detectors import KnownDetector
from .model_errors import ConfigError
from .registration import ModelEntry

CACHE_VARIABLE = "OCR_ONNX_CACHE"

_APP = "deepseek-ocr"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Device names that Windows refuses as a file name, with or without an extension.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def platform_dirs(platform: type[PlatformDirsABC] = platformdirs.PlatformDirs) -> PlatformDirsABC:
    """The folders of this application. No author folder, no ``Cache`` folder, roaming settings: Windows only."""
    return platform(_APP, appauthor=False, roaming=True, opinion=False)


def config_path() -> Path:
    """config.toml of this user."""
    return Path(platform_dirs().user_config_dir) / "config.toml"


def cache_dir(configured: Path | None = None) -> Path:
    """Root of what can be made again: downloads and exported models.

    The variable ``OCR_ONNX_CACHE`` wins over ``configured`` (config.toml's), that over the platform's place.
    """
    if place := os.environ.get(CACHE_VARIABLE):
        return Path(place).expanduser().absolute()
    return configured or Path(platform_dirs().user_cache_dir)


def check_model_id(model_id: str) -> str:
    """Return the id when it is safe as a folder name on every platform.

    Raises
    ------
    ConfigError
        for separators, ``..``, reserved device names and other surprises.
    """
    if (
        not _ID.fullmatch(model_id)
        or ".." in model_id
        or model_id.endswith(".")
        or model_id.split(".")[0].lower() in _RESERVED
    ):
        raise ConfigError(
            f"model id {model_id[:120]!r} cannot be used; ids have letters, digits, '.', '_' and '-', "
            "start with a letter or digit, and have at most 100 characters"
        )
    return model_id


def export_dir(entry: ModelEntry, dtype: str, cache: Path | None = None) -> Path:
    """``<cache>/models/<id>/onnx/<dtype>``, the folder that the exporter publishes and the runtime opens.

    ``cache`` : ``cache_dir()`` when None.

    Where files of the source are replaced, the folder is ``onnx-<hash>`` instead, so that graphs made from other
    files are never taken for these. The hash covers each file's path, size and modification time.

    Raises
    ------
    ConfigError
        for an id or a dtype that cannot be used, or a replacement file that is not there.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    identity = _override_identity(entry)
    onnx = f"onnx-{identity}" if identity else "onnx"
    return (cache or cache_dir()) / "models" / check_model_id(entry.id) / onnx / dtype


def detector_dir(detector: KnownDetector, cache: Path | None = None) -> Path:
    """``<cache>/models/<id>/onnx/f32``, the export of a layout detector, which all models share.

    ``cache`` : ``cache_dir()`` when None. One export serves all devices, so there is one dtype of it.
    """
    return (cache or cache_dir()) / "models" / detector.id / "onnx" / "f32"


def _override_identity(entry: ModelEntry) -> str:
    overrides = {
        "config": entry.config, "tokenizer": entry.tokenizer, "weights": entry.weights, "adapter": entry.adapter,
    }  # fmt: skip
    digest = hashlib.sha256()
    for name, path in overrides.items():
        if path is None:
            continue
        resolved = path.expanduser().resolve()
        if not resolved.exists():
            raise ConfigError(f"the {name} file of model {entry.id!r} is not there: {resolved}")
        files = sorted(p for p in resolved.iterdir() if p.is_file()) if resolved.is_dir() else [resolved]
        for file in files:
            status = file.stat()
            digest.update(f"{name}\0{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:8] if any(overrides.values()) else ""
