"""config.toml: read, checked, laid over the catalogue; written with commented defaults where it is missing.

Exporter and server read the same file. deepseek-ocr.rs shares it: keys that only that program knows are skipped and
named once in the log. An existing file is never rewritten.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from . import catalog, paths, precedence
from .catalog import CATALOG, DTYPES
from .checkpoint_size import parameter_count
from .config_template import DEFAULT_ACTIVE, SERVER_KEYS, render
from .families import FAMILIES
from .layout.detectors import NONE, detector_of
from .layout.page_rules import PLAIN
from .layout.place import is_folder, with_detector
from .layout.task import DOCUMENT
from .model_errors import ConfigError, InvalidInput
from .nearest import did_you_mean
from .registration import ModelEntry
from .registry import tasks_of
from .settings import InferenceSettings

log = logging.getLogger(__name__)

DEVICES = ("cpu", "cuda", "coreml", "metal", "auto")
_CARDS = re.compile(r"cuda:(\d+|all)")


def is_device(name: str) -> bool:
    """Whether a name is a device's: one of those above, one of several GPUs (``cuda:1``), or all (``cuda:all``)."""
    return name in DEVICES or _CARDS.fullmatch(name) is not None


# deepseek-ocr.rs's names of quantised snapshots.
_SNAPSHOT_DTYPES = {"q4_k": "q4", "q6_k": "q8", "q8_0": "q8"}
# deepseek-ocr.rs writes these, too; here templates are not chosen, and the cache is always used.
_IGNORED_INFERENCE = frozenset({"template", "use_cache"})


class UnknownModel(ConfigError):
    """A model id that neither config.toml nor the catalogue knows."""


@dataclass(frozen=True)
class Config:
    """A checked configuration. Tables hold only what the file sets."""

    path: Path
    active: str = DEFAULT_ACTIVE
    cache: Path | None = None  # folder of downloads and exports, see ``cache_dir``
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # id -> fields of ModelEntry that it sets
    inference: Mapping[str, Any] = field(default_factory=dict)  # inference settings by field name
    device: str | None = None
    dtype: str | None = None
    server: Mapping[str, Any] = field(default_factory=dict)  # keys of config_template.SERVER_KEYS

    @property
    def cache_dir(self) -> Path:
        """Root of downloads and exports: the environment's, else this file's, else the platform's."""
        return paths.cache_dir(self.cache)

    def export_dir(self, entry: ModelEntry, dtype: str) -> Path:
        """See ``paths.export_dir``."""
        return paths.export_dir(entry, dtype, self.cache_dir)

    def model_ids(self) -> list[str]:
        """Every id that is configured or in the catalogue, usable or not."""
        return sorted({*self.entries, *CATALOG})

    def entry(self, model_id: str) -> ModelEntry:
        """The model's entry: config.toml's fields over the catalogue's.

        An id that ends in a dtype (``deepseek-ocr-q8``) is its base model with that dtype, and keeps the base's id so
        that both share one export, unless its own table gives it another source.

        Raises
        ------
        UnknownModel
            listing the known ids.
        """
        if model_id in CATALOG or (model_id in self.entries and not self.is_variant(model_id)):
            return self._plain_entry(model_id)
        variant = catalog.split_variant(model_id)
        if variant is None or not self.is_variant(model_id):
            raise UnknownModel(
                f"model {model_id!r:.120} is not known; known models: {', '.join(self.model_ids())}"
                f"{did_you_mean(model_id, self.model_ids())}"
            )
        base = self.entry(variant[0])
        own = dict(self.entries.get(model_id, {}))
        own["defaults"] = {**base.defaults, **own.get("defaults", {})}
        own.setdefault("dtype", variant[1])
        own.pop("family", None)
        if "source" in own or "revision" in own:
            own["id"] = model_id
        return with_detector(dataclasses.replace(base, **own), self.cache_dir)

    def dtype_of(self, entry: ModelEntry, device: str) -> str:
        """The dtype of an entry's weights: its own, else this file's, else the default of the device and the size."""
        if dtype := entry.dtype or self.dtype:
            return dtype
        return catalog.default_dtype(device, parameter_count(entry.source, entry.weights))

    def is_variant(self, model_id: str) -> bool:
        """Whether the id means another model in a certain dtype."""
        variant = catalog.split_variant(model_id)
        if model_id in CATALOG or variant is None or (variant[0] not in CATALOG and variant[0] not in self.entries):
            return False
        own = self.entries.get(model_id, {}).get("family")
        return own in (None, self.entry(variant[0]).family)

    def _plain_entry(self, model_id: str) -> ModelEntry:
        own = dict(self.entries.get(model_id, {}))
        known = CATALOG.get(model_id)
        if known is None:
            family = own.pop("family", "deepseek-ocr")
            # As in deepseek-ocr.rs, an entry without a source is the family's published model.
            published = FAMILIES[family].models[0]
            entry = ModelEntry(model_id, family, published.source, layout=published.layout)
            return with_detector(dataclasses.replace(entry, **own), self.cache_dir)
        own["defaults"] = {**known.defaults, **own.get("defaults", {})}
        return with_detector(dataclasses.replace(known, **own), self.cache_dir)


def load_config(path: Path | None = None, *, create: bool = False) -> Config:
    """Read a config.toml.

    path : None for the platform's own file, which is first written with commented defaults when it is missing.
    create : do so for any path.

    Raises
    ------
    ConfigError
        naming file, key, what was found and what was expected.
    """
    create = create or path is None
    path = (path or paths.config_path()).expanduser().absolute()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        if not create:
            raise ConfigError(f"{path} is not there; --init-config writes it with commented defaults") from None
        text = render()
        _write_new(path, text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return _Reader(path).config(document)


def _write_new(path: Path, text: str) -> None:
    """Publish a new file whole; do nothing when another process was faster, or the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            temporary.chmod(0o644)
            _publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot write the default configuration %s (%s); going on with the defaults", path, error)


def _publish(temporary: Path, path: Path) -> None:
    # A hard link appears whole, and fails when the name is taken. On systems without links, both writers have the same
    # text.
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError:
        if not path.exists():
            temporary.replace(path)
    log.info("wrote a configuration with commented defaults: %s", path)


class _Reader:
    """Checks one document. Holds the file's name for messages, and the list of skipped keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ignored: list[str] = []

    def config(self, document: Mapping[str, Any]) -> Config:
        self._known(document, "", {"models", "inference", "server"})
        models = self._table(document, "models")
        self._known(models, "models", {"active", "cache", "entries"})
        cache = self._typed(models, "models", "cache", str, "a folder")
        inference = self._table(document, "inference")
        device = self._device(inference)
        dtype = self._choice(inference, "inference", "precision", DTYPES)
        if "dtype" in inference:
            dtype = self._choice(inference, "inference", "dtype", DTYPES)
        settings = {key: value for key, value in inference.items() if key not in {"device", "precision", "dtype"}}
        entries = self._table(models, "entries", "models")
        config = Config(
            path=self.path,
            active=self._typed(models, "models", "active", str, "a model id") or DEFAULT_ACTIVE,
            cache=self.path.parent / Path(cache).expanduser() if cache else None,
            entries={key: self._entry(key, self._table(entries, key, "models.entries")) for key in entries},
            inference=self._settings(settings, "inference", {"device", "precision", "dtype"}),
            device=device,
            dtype=dtype,
            server=self._server(self._table(document, "server")),
        )
        for model_id in entries:
            self._check_task(config.entry(model_id))
        if self.ignored:
            log.info("%s: skipped what only deepseek-ocr.rs uses: %s", self.path, ", ".join(self.ignored))
        return config

    def _entry(self, model_id: str, table: Mapping[str, Any]) -> dict[str, Any]:
        where = f"models.entries.{model_id}"
        files = ("config", "tokenizer", "weights", "adapter")
        self._known(
            table,
            where,
            {"kind", "source", "revision", "dtype", "snapshot", "task", "tasks", "layout", "page", "defaults", *files},
        )
        try:
            paths.check_model_id(model_id)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: [models.entries]: {error}") from None
        entry: dict[str, Any] = {}
        if "kind" in table:
            kind = self._typed(table, where, "kind", str, "a model kind") or ""
            family = catalog.normalise_family(kind, model_id)
            if family is None:
                self._fail(where, "kind", f"one of {', '.join(catalog.family_spellings())}", kind)
            entry["family"] = family
        if (source := self._typed(table, where, "source", str, "a directory or a hub id")) is not None:
            entry["source"] = self._source(source)
        if (revision := self._typed(table, where, "revision", str, "a branch, tag or commit")) is not None:
            entry["revision"] = revision
        if (dtype := self._entry_dtype(table, where)) is not None:
            entry["dtype"] = dtype
        if (task := self._typed(table, where, "task", str, "the name of a task")) is not None:
            entry["task"] = task
        if "tasks" in table:
            tasks = table["tasks"]
            if not isinstance(tasks, list) or not tasks or not all(isinstance(name, str) for name in tasks):
                self._fail(where, "tasks", "a list of names of tasks", tasks)
            entry["tasks"] = tuple(tasks)
        if (layout := self._typed(table, where, "layout", str, "a layout detector")) is not None:
            entry["layout"] = self._layout(where, layout)
        if "page" in table:
            entry["page"] = self._page_rules(f"{where}.page", self._table(table, "page", where))
        for name in files:
            if (file := self._typed(table, where, name, str, "a path")) is not None:
                entry[name] = self.path.parent / Path(file).expanduser()
        if "defaults" in table:
            defaults = self._table(table, "defaults", where)
            # deepseek-ocr.rs nests the settings one level deeper.
            nested = self._table(defaults, "inference", f"{where}.defaults")
            flat = {key: value for key, value in defaults.items() if key != "inference"}
            entry["defaults"] = {
                **self._settings(flat, f"{where}.defaults", {"inference"}),
                **self._settings(nested, f"{where}.defaults.inference"),
            }
        return entry

    def _page_rules(self, where: str, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Layout rules that an entry changes in its family's."""
        try:
            PLAIN.change(table)
        except InvalidInput as error:
            raise ConfigError(f"{self.path}: [{where}] {error}") from None
        return dict(table)

    def _layout(self, where: str, layout: str) -> str | None:
        if layout == NONE:
            return None
        if is_folder(layout):
            return str((self.path.parent / Path(layout).expanduser()).resolve())
        try:
            return detector_of(layout).id
        except ConfigError as error:
            raise ConfigError(f"{self.path}: [{where}] layout: {error}") from None

    def _check_task(self, entry: ModelEntry) -> None:
        known, where = tasks_of(entry.family), f"models.entries.{entry.id}"
        for name in (entry.tasks or ()) if known else ():
            if name not in known:
                self._fail(where, "tasks", f"some of {', '.join(known)}", name)
        tasks = (*(entry.tasks or known), *([DOCUMENT] if entry.layout is not None else []))
        if entry.task is not None and tasks and entry.task not in tasks:
            self._fail(where, "task", f"one of {', '.join(tasks)}", entry.task)

    def _entry_dtype(self, table: Mapping[str, Any], where: str) -> str | None:
        dtype = self._choice(table, where, "dtype", DTYPES)
        snapshot = self._table(table, "snapshot", where)
        self._known(snapshot, f"{where}.snapshot", {"dtype", "path"})
        if snapshot:
            self.ignored.append(f"{where}.snapshot (its file; the dtype is kept)")
        name = self._typed(snapshot, f"{where}.snapshot", "dtype", str, "a quantisation name")
        return dtype or (_SNAPSHOT_DTYPES.get(name.lower()) if name else None)

    def _source(self, source: str) -> str:
        """Directories written relative to the file, or with ``~``, become absolute; a hub id stays as it is."""
        if source.startswith("~"):
            return str(Path(source).expanduser())
        if source.startswith(("./", "../", ".\\", "..\\")) or source in {".", ".."}:
            return str((self.path.parent / source).resolve())
        return source

    def _settings(self, table: Mapping[str, Any], where: str, others: set[str] | None = None) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key in _IGNORED_INFERENCE:
                self.ignored.append(f"{where}.{key}")
                continue
            if key not in precedence.BY_NAME:
                self._unknown(where, key, {*precedence.BY_NAME, *(others or set())})
            try:
                values[key] = precedence.check_value(precedence.BY_NAME[key], value)
                InferenceSettings().override({key: values[key]})
            except InvalidInput as error:
                raise ConfigError(f"{self.path}: [{where}] {key}: {error}") from None
        return values

    def _server(self, table: Mapping[str, Any]) -> dict[str, Any]:
        self._known(table, "server", {key.name for key in SERVER_KEYS})
        for key in SERVER_KEYS:
            if key.name in table and not key.accepts(table[key.name]):
                self._fail("server", key.name, key.expected, table[key.name])
        return dict(table)

    def _table(self, parent: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
        value = parent.get(key, {})
        if not isinstance(value, dict):
            self._fail(where, key, "a table", value)
        return value  # type: ignore[no-any-return]

    def _typed(self, table: Mapping[str, Any], where: str, key: str, kind: type[str], expected: str) -> str | None:
        value = table.get(key)
        if value is not None and (not isinstance(value, kind) or not value):
            self._fail(where, key, expected, value)
        return value

    def _choice(self, table: Mapping[str, Any], where: str, key: str, choices: tuple[str, ...]) -> str | None:
        value = table.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or value.lower() not in choices:
            near = did_you_mean(str(value), choices)
            self._fail(where, key, f"one of {', '.join(choices)}", value, near)
        return str(value).lower()

    def _device(self, table: Mapping[str, Any]) -> str | None:
        value = table.get("device")
        return (
            value
            if isinstance(value, str) and is_device(value)
            else self._choice(table, "inference", "device", DEVICES)
        )

    def _known(self, table: Mapping[str, Any], where: str, keys: set[str]) -> None:
        for key in table:
            if key not in keys:
                self._unknown(where, key, keys)

    def _unknown(self, where: str, key: str, keys: set[str]) -> None:
        place = f"[{where}] " if where else ""
        raise ConfigError(f"{self.path}: {place}{key}: unknown key; expected one of {', '.join(sorted(keys))}"
                          f"{did_you_mean(key, keys)}")  # fmt: skip

    def _fail(self, where: str, key: str, expected: str, value: Any, near: str = "") -> None:
        place = f"[{where}] " if where else ""
        raise ConfigError(f"{self.path}: {place}{key}: expected {expected}, found {value!r:.80}{near}")
