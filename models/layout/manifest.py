"""manifest.json of an exported layout detector: a kind of its own, beside that of the models that read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from models.manifest import Checked, FolderManifest, Graph, Manifest, Part, Provider, kind_of

from .rules import DetectionRules


class ImageRules(Part):
    """How a page becomes the graph's input: resized to exactly this, pixels 0..1 (see ``models.layout.resize``)."""

    height: int
    width: int


class LayoutManifest(FolderManifest):
    """What an exported folder of a detector holds."""

    KIND: ClassVar[str] = "layout detector"
    FORMAT: ClassVar[int] = 1

    kind: Literal["layout detector"] = "layout detector"
    format: int = 1
    layout: Graph
    labels: tuple[str, ...]  # by the id that the graph gives
    image: ImageRules
    rules: DetectionRules  # what its vendor does with the boxes, unless a family has rules of its own
    checked: Mapping[Provider, Checked] = {}
    report: Mapping[str, Any] = {}  # measured errors

    @property
    def providers(self) -> list[Provider]:
        """Those that the folder has graphs for."""
        return sorted(self.layout.files)


def load_any(folder: Path) -> Manifest | LayoutManifest:
    """The manifest of an exported folder of either kind, its files checked; raises ManifestError as ``load`` does."""
    return LayoutManifest.load(folder) if kind_of(folder) == LayoutManifest.KIND else Manifest.load(folder)


def peek_any(folder: Path) -> Manifest | LayoutManifest:
    """The same, of the manifest alone."""
    return LayoutManifest.peek(folder) if kind_of(folder) == LayoutManifest.KIND else Manifest.peek(folder)
