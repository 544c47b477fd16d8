"""Which families there are, by the name that the manifest gives, and what can be said of them without a model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from .catalog import ModelEntry
from .deepseek_ocr.family import DeepseekOcr
from .errors import ManifestError
from .family import Family
from .manifest import Manifest
from .paddleocr_vl.family import PaddleOcrVl


class FamilyClass(Protocol):
    """A family before it is bound to an exported model."""

    tasks: Mapping[str, str]
    default_task: str
    defaults: Mapping[str, Any]

    def __call__(self, manifest: Manifest) -> Family: ...


_FAMILIES: Mapping[str, FamilyClass] = {"deepseek-ocr": DeepseekOcr, "paddleocr-vl": PaddleOcrVl}


def family_of(manifest: Manifest) -> Family:
    """The family of an exported model, bound to its settings.

    Raises
    ------
    ManifestError
        when this version knows no such family.
    """
    if manifest.family not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise ManifestError(f"family {manifest.family!r} is unknown to this version, which knows {known}; upgrade it")
    return _FAMILIES[manifest.family](manifest)


def tasks_of(family: str) -> Mapping[str, str]:
    """Tasks of a family with their prompts; none for a family that this version knows by name only."""
    known = _FAMILIES.get(family)
    return MappingProxyType({}) if known is None else known.tasks


def defaults_of(family: str) -> Mapping[str, Any]:
    """Inference settings that a family is at its best with, below those of config.toml; none for an unknown one."""
    known = _FAMILIES.get(family)
    return MappingProxyType({}) if known is None else known.defaults


def default_task(entry: ModelEntry) -> str:
    """The task of an image that comes without a prompt: the entry's own, else its family's.

    The family must be one of those that this version supports.
    """
    return entry.task or _FAMILIES[entry.family].default_task
