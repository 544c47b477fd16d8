"""What a model needs to read pages by their parts: the detector that its entry or its caller names, and the rules."""

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
    """What the catalogue says of an exported model, and where its detector is."""
    known = CATALOG.get(manifest.id) or ModelEntry(manifest.id, manifest.family, manifest.source.name)
    return with_detector(known, cache_dir())


def with_layout(
    entry: ModelEntry, layout: str | os.PathLike[str] | Detector | None, folder: Path
) -> tuple[ModelEntry, Detector | None]:
    """The entry with the detector that a caller names, and that detector where it is one already.

    folder : of the model's export, which stands for that of a detector that needs none.

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
    """What reads pages by their parts with a model that need not live on for it, but for those that are begun.

    Raises
    ------
    InvalidInput
        for a rule of the entry that cannot be.
    """

    def open_detector() -> Detector:
        if detector is not None:
            return detector
        assert entry.detector is not None
        return LayoutModel.open(entry.detector, device, threads)

    return PageReader(open_detector, weakref.ref(model), prompts_of(entry), rules_of(entry))
