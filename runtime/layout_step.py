"""Sets up reading by parts for a model: the detector that its catalogue entry or the caller names, and the rules."""

from __future__ import annotations

import os
import weakref
from dataclasses import replace
from pathlib import Path

from models.catalog import CATALOG
from models.layout.place import with_detector
from models.layout.step import prompts_of, rules_of
from models.manifest import Manifest
from models.paths import cache_dir
from models.registration import ModelEntry

from .layout import LayoutModel
from .pages import Detector, PageReader, Recogniser


def entry_of(manifest: Manifest) -> ModelEntry:
    """The catalogue's entry of an exported model, with the place of its detector."""
    known = CATALOG.get(manifest.id) or ModelEntry(manifest.id, manifest.family, manifest.source.name)
    return with_detector(known, cache_dir())


def with_layout(
    entry: ModelEntry, layout: str | os.PathLike[str] | Detector | None, folder: Path
) -> tuple[ModelEntry, Detector | None]:
    """The entry with the detector that a caller names, and the detector where ``layout`` is itself one.

    folder : the model's export, entered as the detector's folder where ``layout`` is an object without one.

    Raises
    ------
    ConfigError
        for a name that means no detector.
    """
    if layout is None:
        return entry, None
    if isinstance(layout, (str, os.PathLike)):
        return with_detector(replace(entry, layout=os.fspath(layout), detector=None), cache_dir()), None
    return replace(entry, layout=type(layout).__name__, detector=folder), layout


def page_reader(
    model: Recogniser, entry: ModelEntry, detector: Detector | None, device: str, threads: int | None
) -> PageReader:
    """The reader of pages by their parts. The reader holds the model weakly: only pages in flight keep the model alive.

    Raises
    ------
    InvalidInput
        for an invalid rule of the entry.
    """

    def open_detector() -> Detector:
        if detector is not None:
            return detector
        assert entry.detector is not None
        return LayoutModel.open(entry.detector, device, threads)

    return PageReader(open_detector, weakref.ref(model), prompts_of(entry), rules_of(entry))
