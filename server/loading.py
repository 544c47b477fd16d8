"""From a model id to a loaded model: its entry, its exported folder (made when it is missing), the runtime."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import models
from models.catalog import CATALOG, SUPPORTED_FAMILIES, require_computed, require_supported
from models.config import Config
from models.errors import ManifestError
from models.registration import ModelEntry
from runtime.requests import TextModel

from .errors import ModelUnavailable
from .options import ServerOptions

log = logging.getLogger(__name__)

_EXPORT_MODULES = ("ml_dtypes", "onnx_ir", "onnxscript", "safetensors")  # what the exporter imports
_BAR_SECONDS = 5.0  # progress bars repaint often; the log takes one line of them in this time


@dataclass(frozen=True)
class ModelKey:
    """One loadable model: what the pool tells models apart by."""

    folder: Path
    dtype: str
    entry: ModelEntry = field(compare=False)  # the folder says which files it stands for

    def __str__(self) -> str:
        return f"{self.entry.id} ({self.dtype})"


class ModelSource:
    """Knows the configured models; opens them, exporting first where needed. Used by one loading thread at a time."""

    def __init__(self, config: Config, options: ServerOptions, device: str) -> None:
        self._config, self._options, self._device = config, options, device
        self._process: subprocess.Popen[str] | None = None
        self._closed = threading.Event()

    def entry(self, model_id: str) -> ModelEntry:
        """The entry to serve; flags replace files of the model that the server was started for.

        Raises
        ------
        UnknownModel
            for an id that is neither configured nor in the catalogue.
        ConfigError
            for a family that this version cannot serve yet.
        """
        entry = self._config.entry(model_id)
        require_supported(entry)
        if model_id == self._options.model:
            options = self._options
            entry = replace(
                entry,
                config=options.model_config or entry.config,
                tokenizer=options.tokenizer or entry.tokenizer,
                weights=options.weights or entry.weights,
            )
        if self._options.dtype and not self._config.is_variant(model_id):  # such an id says its dtype itself
            entry = replace(entry, dtype=self._options.dtype)
        return entry

    def key(self, entry: ModelEntry) -> ModelKey:
        """Which folder serves the entry.

        Raises
        ------
        ConfigError
            when a file that replaces one of the model's is not there, or the device does not compute in the dtype.
        """
        dtype = self._config.dtype_of(entry, self._device)
        require_computed(dtype, self._device)
        return ModelKey(self._config.export_dir(entry, dtype), dtype, entry)

    def model_ids(self) -> list[str]:
        """Ids that can be asked for, in the order of /v1/models: the one to start with first."""
        ids = [
            model_id
            for model_id in {*self._config.entries, *CATALOG, self._options.model}
            if self._config.entry(model_id).family in SUPPORTED_FAMILIES
        ]
        return sorted(ids, key=lambda model_id: (model_id != self._options.model, model_id))

    def load(self, key: ModelKey) -> TextModel:
        """Open the model's folder, exporting it first when it is not there.

        Raises
        ------
        ModelUnavailable
            when it cannot be exported or opened; the message names the remedy.
        """
        from runtime.errors import RuntimeUnavailable
        from runtime.model import Model

        if not (key.folder / "manifest.json").is_file():
            self._export(key)
        self._warn_of_other_source(key)
        options = self._options
        try:
            return Model.open(
                key.folder,
                device=self._device,
                threads=options.threads or None,
                slots=options.slots or None,
                vision_cache_mb=options.vision_cache_mb,
                max_queue=options.capacity,  # the server bounds the queue itself, before a request costs anything
            )
        except (ManifestError, RuntimeUnavailable) as error:
            raise ModelUnavailable(str(error)) from error
        except Exception as error:  # ONNX Runtime's own, or no memory left
            log.exception("opening %s failed", key.folder)
            raise ModelUnavailable(f"model {key} cannot be loaded: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """End an export that runs. What it wrote so far is not published."""
        self._closed.set()
        if (process := self._process) is not None:
            process.terminate()

    def _export(self, key: ModelKey) -> None:
        by_hand = f"ocr-onnx export {key.entry.id} --dtype {key.dtype}"
        missing = missing_for_export()
        if missing:
            raise ModelUnavailable(
                f"model {key} has not been exported yet, and exporting needs {', '.join(missing)}: "
                f"pip install 'ocr-onnx[export]', then {by_hand} (or copy an export to {key.folder})"
            )
        log.info("model %s has not been exported yet; exporting it to %s", key, key.folder)
        last = ""
        with subprocess.Popen(
            self._command(key),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=_environment(),
        ) as process:
            self._process = process
            if self._closed.is_set():
                process.terminate()
            assert process.stdout is not None
            last = _log_lines(process.stdout, key)
        self._process = None
        if self._closed.is_set():
            raise ModelUnavailable("the server is shutting down")
        if process.returncode != 0 or not (key.folder / "manifest.json").is_file():
            raise ModelUnavailable(f"exporting model {key} failed: {last or 'no message'}; to see all of it: {by_hand}")

    def _command(self, key: ModelKey) -> list[str]:
        # -P: a file named export.py in the working directory is not the exporter.
        command = [sys.executable, "-P", "-m", "export", key.entry.id, "--dtype", key.dtype]
        command += ["--output", str(key.folder)]
        if self._config.path.is_file():  # not there where the default one cannot be written
            command += ["--config", str(self._config.path)]
        entry = key.entry
        overrides = {"--tokenizer": entry.tokenizer, "--weights": entry.weights, "--model-config": entry.config}
        for flag, path in overrides.items():
            if path is not None:
                command += [flag, str(path.expanduser().resolve())]
        return command

    def _warn_of_other_source(self, key: ModelKey) -> None:
        """An export made from another source (by hand, or before the entry was changed) still serves; say so."""
        try:
            made_from = json.loads((key.folder / "manifest.json").read_text(encoding="utf-8"))["source"]["name"]
            wanted = key.entry.source
        except (OSError, ValueError, KeyError, TypeError):
            return  # the runtime says what is wrong with the manifest
        if made_from != wanted and Path(made_from).name != Path(wanted).name:
            log.warning(
                "model %s was exported from %s; its entry says %s. To export it anew: ocr-onnx export %s --force",
                key, made_from, wanted, key.entry.id,
            )  # fmt: skip


def missing_for_export() -> list[str]:
    """Packages that the exporter needs and this installation does not have."""
    return [name for name in ("export", *_EXPORT_MODULES) if importlib.util.find_spec(name) is None]


def _environment() -> dict[str, str]:
    """The child's environment: it finds the same packages as this process, checkout or installed."""
    root = str(Path(models.__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root, "PYTHONUNBUFFERED": "1"}


def _log_lines(lines: object, key: ModelKey) -> str:
    """Log the exporter's output line by line; returns the last line that says something."""
    last, last_bar = "", 0.0
    for raw in lines:  # type: ignore[attr-defined]
        line = raw.strip()
        if not line:
            continue
        if "%|" in line:
            if time.monotonic() - last_bar >= _BAR_SECONDS:
                last_bar = time.monotonic()
                log.info("export %s: %s", key.entry.id, line)
            continue
        last = line
        log.info("export %s: %s", key.entry.id, line)
    return last.removeprefix("error: ")
