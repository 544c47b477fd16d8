"""A family's registration: catalogue entries, spellings, rules, exporter and reference.

Catalogue, registry, exporter, benchmark and parity know families by their ``Registration`` only. This package's are
listed in ``models.families``; other packages add theirs through the entry-point group ``ocr_onnx.families``. Exporter
and reference are dotted names (``package.module:Class``), since this package must not import their requirements.
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
    task: str | None = None  # task of an image without a prompt; None: the first of tasks, else the family's default
    tasks: tuple[str, ...] | None = None  # tasks that the model was trained on; None: its family's
    layout: str | None = None  # the layout detector: its id, or a folder; None: no layout step
    page: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # changed layout rules
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
    """Members of a protocol, and abstract ones of its own bases, that a class lacks."""
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
    architectures : ``architectures`` in config.json of its checkpoints.
    known_prompts : prompts beside those of its tasks, for models that know no others; None: its models follow any
    prompt.
    prompts : texts with the ids that the published tokenizer gives them, to recognise a rewritten tokenizer.
    page : layout rules; None: the plain ones. elements : the task for each element, see ``models.layout.page_rules``;
    None: tasks of the elements' names, and the default task for text.
    extraction : the task that fills a JSON template in its text; None: there is none.
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
        """Whether this version can export and serve the family."""
        return self.rules is not None and self.exporter is not None
