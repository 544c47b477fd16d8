"""From a model id to a loaded model: entry, exported folder (exported when missing), runtime."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from models.catalog import CATALOG, SUPPORTED_FAMILIES, require_computed, require_supported
from models.config import Config, UnknownModel
from models.exporter import command
from models.layout.task import is_document
from models.manifest import FILE_NAME, Manifest, restore_retired
from models.model_errors import ConfigError, ManifestError
from models.nearest import did_you_mean
from models.registration import ModelEntry
from models.registry import family_of
from models.settings import InferenceSettings
from models.source_files import difference
from runtime.requests import TextModel
from runtime.runtime_errors import ModelUnavailable

from .export_process import ExportProcess, missing_for_export
from .options import ModelOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelKey:
    """One loadable model; the pool's key."""

    folder: Path
    dtype: str
    entry: ModelEntry = field(compare=False)  # the folder says which files the id stands for

    def __str__(self) -> str:
        return f"{self.entry.id} ({self.dtype})"


class ModelSource:
    """Knows the configured models; opens them, exporting first where needed. Used by one loading thread at a time."""

    def __init__(self, config: Config, options: ModelOptions, device: str) -> None:
        self._config, self._options, self._device = config, options, device
        self._process: ExportProcess | None = None
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
        try:
            entry = self._config.entry(model_id)
        except UnknownModel:
            known = self.usable_ids()
            raise UnknownModel(
                f"model {model_id!r:.120} is not known; known models: "
                f"{', '.join(known) or 'none, for nothing is exported here'}{did_you_mean(model_id, known)}"
            ) from None
        require_supported(entry)
        if model_id == self._options.model:
            options = self._options
            entry = replace(
                entry,
                config=options.model_config or entry.config,
                tokenizer=options.tokenizer or entry.tokenizer,
                weights=options.weights or entry.weights,
                adapter=options.adapter or entry.adapter,
            )
        if self._options.dtype and not self._config.is_variant(model_id):  # such an id names its dtype
            entry = replace(entry, dtype=self._options.dtype)
        return entry

    def key(self, entry: ModelEntry) -> ModelKey:
        """The folder that serves the entry, as a key.

        Raises
        ------
        ConfigError
            when a file that replaces one of the model's is not there, or the device does not compute in the dtype.
        """
        dtype = self._config.dtype_of(entry, self._device)
        require_computed(dtype, self._device)
        return ModelKey(self._config.export_dir(entry, dtype), dtype, entry)

    def model_ids(self) -> list[str]:
        """Ids that can be asked for, in the order of /v1/models: the server's own model first."""
        ids = [
            model_id
            for model_id in {*self._config.entries, *CATALOG, *self._own_id()}
            if self._config.entry(model_id).family in SUPPORTED_FAMILIES
        ]
        return sorted(ids, key=lambda model_id: (model_id != self._options.model, model_id))

    def usable_ids(self) -> list[str]:
        """Those of ``model_ids`` that a request would get, now or after an export."""
        if self._options.switch_models == "off":
            return self._own_id()
        can_export = self._options.export_on_demand == "on" and not missing_for_export()
        return [model_id for model_id in self.model_ids() if self._is_usable(model_id, can_export)]

    def _own_id(self) -> list[str]:
        """The id that the server was started for, where it was started for one."""
        try:
            return [self._options.model] if self._config.entry(self._options.model) else []
        except UnknownModel:
            return []

    def _is_usable(self, model_id: str, can_export: bool) -> bool:
        try:
            return can_export or self.is_exported(self.key(self.entry(model_id)))
        except ConfigError:
            return False

    def is_exported(self, key: ModelKey) -> bool:
        """Whether a finished export is there."""
        restore_retired(key.folder)
        return (key.folder / FILE_NAME).is_file()

    def seen_pixels(self, key: ModelKey, prompt: str, settings: InferenceSettings) -> int | None:
        """See ``Family.seen_pixels``; None for a model that is not exported, or reads pages by their parts."""
        if is_document(prompt):
            return None
        try:
            family = family_of(Manifest.load(key.folder))
        except ManifestError:
            return None
        return family.seen_pixels(settings.family, prompt)

    def check(self, key: ModelKey) -> None:
        """Check that an export is whole, without opening the model.

        Raises
        ------
        ModelUnavailable
            when a file is missing or damaged, or another version made it.
        """
        try:
            Manifest.load(key.folder)
        except ManifestError as error:
            raise ModelUnavailable(str(error), permanent=True) from error

    def load(self, key: ModelKey) -> TextModel:
        """Open the model's folder, exporting the model first when the folder is missing.

        Raises
        ------
        ModelUnavailable
            when the model cannot be exported or opened; the message names the remedy.
        """
        from runtime.model import Model
        from runtime.runtime_errors import RuntimeUnavailable

        if not self.is_exported(key):
            self.export(key, self.exporter(key))
        self._compare_with_source(key)
        options = self._options
        try:
            return Model.open(
                key.folder,
                device=options.device if ":" in options.device else self._device,  # which of several cards
                threads=options.threads or None,
                slots=options.slots or None,
                vision_cache_mb=options.vision_cache_mb,
                warm_up=None if options.warm_up == "auto" else options.warm_up,
                max_context=options.max_context or None,
                entry=key.entry,
                many=options.many,
                max_queue=options.capacity,  # a server has its own bounded queue, before a request costs anything
            )
        except (ManifestError, RuntimeUnavailable) as error:
            raise ModelUnavailable(str(error), permanent=True) from error
        except Exception as error:  # ONNX Runtime's errors, or no memory left
            log.exception("opening %s failed", key.folder)
            raise ModelUnavailable(f"model {key} cannot be loaded: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Interrupt the export that ``load`` runs; nothing of an interrupted export is published."""
        self._closed.set()
        if (process := self._process) is not None:
            process.end()

    def by_hand(self, key: ModelKey) -> str:
        """The command that exports the model, for a person."""
        return f"ocr-onnx export {key.entry.id} --dtype {key.dtype}"

    def exporter(self, key: ModelKey) -> ExportProcess:
        """The program that exports the model, not started yet.

        Raises
        ------
        ModelUnavailable
            when packages that the exporter needs are missing.
        """
        if missing := missing_for_export():
            raise ModelUnavailable(
                f"model {key} has not been exported yet, and exporting needs {', '.join(missing)}: "
                f"pip install 'ocr-onnx[export]', then {self.by_hand(key)} (or copy an export to {key.folder})",
                permanent=True,
            )
        return ExportProcess(key.entry.id, self.export_command(key))

    def export(self, key: ModelKey, process: ExportProcess) -> None:
        """Run the exporter to its end.

        Raises
        ------
        ModelUnavailable
            when the export failed, with the whole reason, or was interrupted.
        """
        why = "is exported anew" if self.is_exported(key) else "has not been exported yet; exporting it"
        log.info("model %s %s to %s", key, why, key.folder)
        self._process = process
        if self._closed.is_set():
            process.end()
        reason = process.run()
        self._process = None
        if self._closed.is_set():
            raise ModelUnavailable("the server is shutting down")
        if process.ended and not self.is_exported(key):
            raise ModelUnavailable(f"the export of model {key} was ended")
        if reason is not None or not self.is_exported(key):
            raise ModelUnavailable(
                f"exporting model {key} failed: {reason or 'no message'}; to see all of it: {self.by_hand(key)}",
                permanent=True,
            )

    def export_command(self, key: ModelKey) -> list[str]:
        entry = key.entry
        arguments = [entry.id, "--dtype", key.dtype, "--output", str(key.folder)]
        if self._config.path.is_file():  # missing where the default folder cannot be written
            arguments += ["--config", str(self._config.path)]
        overrides = {
            "--tokenizer": entry.tokenizer,
            "--weights": entry.weights,
            "--model-config": entry.config,
            "--adapter": entry.adapter,
        }
        for flag, path in overrides.items():
            if path is not None:
                arguments += [flag, str(path.expanduser().resolve())]
        return command(*arguments)

    def _compare_with_source(self, key: ModelKey) -> None:
        """Notice an export made from another source, or from files that have changed since.

        Raises
        ------
        ModelUnavailable
            when the export must not be served, or could not be made anew.
        """
        try:
            changed = difference(Manifest.load(key.folder).source, key.entry)
        except ManifestError:
            return  # the runtime says what is wrong with the manifest
        if changed is None:
            return
        if self._options.stale_exports == "export":
            log.warning("the export of model %s is stale: %s", key, changed)
            self.export(key, self.exporter(key))
            return
        line = f"the export of model {key} is stale: {changed}. To export it anew: {self.by_hand(key)} --force"
        if self._options.stale_exports == "refuse":
            raise ModelUnavailable(f"{line} (or let --stale-exports say or export)", permanent=True)
        log.warning("%s", line)
