"""What a family says of itself, once: its catalogue entries, its spellings, its rules, its exporter, its reference.

Catalogue, registry, exporter, benchmark and parity read a ``Registration`` and nothing else of a family. Those of this
package are listed in ``models.families``; another package brings one through the entry-point group
``ocr_onnx.families``. Exporter and reference are dotted names (``package.module:Class``): this package may not import
what they need.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from .family import Family
from .family_settings import FamilySettings
from .layout.page_rules import PageRules
from .manifest import Manifest


@dataclass(frozen=True)
class ModelEntry:
    """One model that can be asked for by its id."""

    id: str
    family: str
    source: str  # a directory in the hub's layout, or a hub id
    revision: str | None = None  # branch, tag or commit of the hub repository; None: its default branch
    dtype: str | None = None  # None: by device and size, see catalog.default_dtype
    config: Path | None = None  # config, weights and tokenizer replace the source's own files
    tokenizer: Path | None = None
    weights: Path | None = None
    adapter: Path | None = None  # folder of a LoRA adapter that the export merges
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # inference settings
    task: str | None = (
        None  # what an image without a prompt is read for; None: the first of tasks, the family's default
    )
    tasks: tuple[str, ...] | None = None  # all that the model was trained on; None: what its family follows
    layout: str | None = None  # the detector that takes pages apart: its id, or a folder; None: there is no such step
    page: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # rules of that, over its family's
    detector: Path | None = field(default=None, compare=False)  # folder of the detector, which may not be exported yet
    description: str = ""


class FamilyClass(Protocol):
    """A family before it is bound to an exported model."""

    tasks: Mapping[str, str]
    default_task: str
    defaults: Mapping[str, Any]
    defaults_for_several: Mapping[str, Any]
    joint_tasks: frozenset[str]
    settings: type[FamilySettings]

    def __call__(self, manifest: Manifest) -> Family: ...


def missing_members(found: object, contract: type) -> list[str]:
    """What a class lacks of the members that a protocol asks for, and of those that its own bases leave to it."""
    bases = inspect.getmro(found) if isinstance(found, type) else ()
    abstract: frozenset[str] = getattr(found, "__abstractmethods__", frozenset())
    left = [name for base in bases for name, kind in inspect.get_annotations(base).items() if "ClassVar" in str(kind)]
    asked = [*inspect.get_annotations(contract), *vars(contract), *left, *sorted(abstract)]
    names = [name for name in dict.fromkeys(asked) if not name.startswith("_")]
    return [name for name in names if name in abstract or not hasattr(found, name)]


@dataclass(frozen=True)
class Registration:
    """One family.

    models : its catalogue entries, the published model first: an entry of config.toml without a source is that one.
    kinds : spellings of ``kind`` in config.toml beside the id, in lower case with hyphens. Two generations may share
    one: it means the family that is registered first, but for an entry whose id names the other.
    architectures : what config.json of its checkpoints says there.
    known_prompts : beside those of its tasks, where its models know no others; None: they follow any prompt.
    prompts : texts with the ids that the published tokenizer gives them: a rewritten one is told by them.
    page : how pages are read by their parts; None: by the plain rules. elements : which task reads what, see
    ``models.layout.page_rules``; None: those of the same name, and the default task for text.
    extraction : the task that takes a JSON template as its text and fills it; None: its models do not.
    rules : None for a family that is known by name only.
    exporter : class with the members of ``export.family.FamilyExport``.
    reference : class with the members of ``tools.reference_family.ReferenceFamily``; None: nothing to compare with.
    """

    id: str
    models: tuple[ModelEntry, ...]
    architectures: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    prompts: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))
    known_prompts: tuple[str, ...] | None = None
    page: PageRules | None = None
    elements: Mapping[str, str] | None = None
    extraction: str | None = None
    rules: FamilyClass | None = None
    exporter: str | None = None
    reference: str | None = None

    @property
    def supported(self) -> bool:
        """Whether this version can export and serve it."""
        return self.rules is not None and self.exporter is not None
