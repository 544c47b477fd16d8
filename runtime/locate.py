"""From the folder or model id given to ``Model.open`` to the exported folder."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

from models.catalog import require_computed, require_supported
from models.config import UnknownModel, load_config
from models.exporter import command, environment
from models.manifest import FILE_NAME, restore_retired
from models.model_errors import ConfigError, ManifestError
from models.paths import check_model_id
from models.registration import ModelEntry

from .providers import find_device

log = logging.getLogger(__name__)


def exported_folder(model: str | os.PathLike[str], dtype: str | None, device: str) -> tuple[Path, ModelEntry | None]:
    """The exported folder of a model; and the catalogue's entry, where ``model`` is an id. A model named by its id is
    exported first when the folder is missing.

    Parameters
    ----------
    model
        an exported folder, or an id of the catalogue or of config.toml. A folder of that name wins.
    dtype, device
        choose among the exports of an id, as they do for every command.

    Raises
    ------
    ManifestError
        when the id is unknown, or its model cannot be exported.
    RuntimeUnavailable
        when the device is not there.
    """
    folder = Path(model).expanduser()
    if folder.exists() or not _may_be_id(os.fspath(model)):
        return folder, None
    resolved = find_device(device).name
    try:
        config = load_config()
        entry = config.entry(os.fspath(model))
        require_supported(entry)
        wanted = dtype or config.dtype_of(entry, resolved)
        require_computed(wanted, resolved)
        target = config.export_dir(entry, wanted)
    except UnknownModel as error:
        raise ManifestError(f"{folder} is no folder, and {error}") from error
    except ConfigError as error:
        raise ManifestError(str(error)) from error
    restore_retired(target)
    if not (target / FILE_NAME).is_file():
        log.warning("model %s (%s) has not been exported yet; exporting it to %s", entry.id, wanted, target)
        made = subprocess.run(
            command(os.fspath(model), "--dtype", wanted, "--output", str(target)),
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
        )  # fmt: skip
        if made.returncode:
            reason = made.stderr.rpartition("error: ")[2].strip() or "no message"
            raise ManifestError(f"model {entry.id} could not be exported: {reason}")
    return target, entry


def _may_be_id(text: str) -> bool:
    try:
        check_model_id(text)
    except ConfigError:
        return False
    return True
