"""manifest.json of an exported layout detector, of another kind than a model's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from models.manifest import Checked, FolderManifest, Graph, Manifest, ManifestPart, Provider, kind_of

from .rules import DetectionRules


class DetectorImageRules(ManifestPart):
    """Size in pixels to which a page is resized for the graph, with values 0..1 (see ``models.layout.resize``)."""

    height: int
    width: int


class LayoutManifest(FolderManifest):
    """The manifest of a detector's exported folder."""

    KIND: ClassVar[str] = "layout detector"
    FORMAT: ClassVar[int] = 1

    kind: Literal["layout detector"] = "layout detector"
    format: int = 1
    layout: Graph
    labels: tuple[str, ...]  # names by the ids of the graph
    image: DetectorImageRules
    rules: DetectionRules  # the vendor's rules for boxes, unless a family has rules of its own
    checked: Mapping[Provider, Checked] = {}
    report: Mapping[str, Any] = {}  # measured errors

    @property
    def providers(self) -> list[Provider]:
        """The providers that the folder has graphs for."""
        return sorted(self.layout.files)


def load_any(folder: Path) -> Manifest | LayoutManifest:
    """The manifest of an exported folder of either kind, its files checked; raises ManifestError as ``load`` does."""
    return LayoutManifest.load(folder) if kind_of(folder) == LayoutManifest.KIND else Manifest.load(folder)


def peek_any(folder: Path) -> Manifest | LayoutManifest:
    """The manifest of either kind, without a check of its files."""
    return LayoutManifest.peek(folder) if kind_of(folder) == LayoutManifest.KIND else Manifest.peek(folder)
