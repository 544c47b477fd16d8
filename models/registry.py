"""Families' rules by the name in the manifest, and facts about families that need no model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .families import FAMILIES
from .family import IMAGE_SLOT, Family
from .layout.place import has_detector
from .layout.task import DOCUMENT
from .manifest import Manifest
from .model_errors import ManifestError
from .registration import FamilyClass, ModelEntry


def family_of(manifest: Manifest) -> Family:
    """The family of an exported model, bound to its settings.

    Raises
    ------
    ManifestError
        when this version knows no such family.
    """
    rules = _rules(manifest.family)
    if rules is None:
        known = ", ".join(sorted(family.id for family in FAMILIES.values() if family.rules is not None))
        raise ManifestError(f"family {manifest.family!r} is unknown to this version, which knows {known}; upgrade it")
    return rules(manifest)


def tasks_of(family: str) -> Mapping[str, str]:
    """Tasks of a family with their prompts; none for a family known by name only."""
    rules = _rules(family)
    return MappingProxyType({}) if rules is None else rules.tasks


def defaults_of(family: str, images: int = 1) -> Mapping[str, Any]:
    """A family's default inference settings, weaker than config.toml's; none for an unknown family.

    images : number of images of the request.
    """
    rules = _rules(family)
    if rules is None:
        return MappingProxyType({})
    return {**rules.defaults, **rules.defaults_for_several} if images > 1 else rules.defaults


def reads_jointly(family: str, prompt: str) -> bool:
    """Whether a prompt is that of a task which reads all pages of a document in one generation."""
    rules = _rules(family)
    joint = [] if rules is None else [_words(rules.tasks[task]) for task in rules.joint_tasks]
    return _words(prompt) in joint


def may_be_joint(task: str | None, prompt: str | None) -> bool:
    """Whether any family has this as a joint prompt, for a model of unknown family."""
    rules = [family.rules for family in FAMILIES.values() if family.rules is not None]
    return any(task in one.joint_tasks for one in rules) or any(
        reads_jointly(family, prompt or "") for family in FAMILIES if task is None
    )


def usual(family: str, setting: str) -> Any:
    """The published models' value of a family's own setting by default; None for an unknown setting."""
    rules = _rules(family)
    declared = None if rules is None else rules.settings.model_fields.get(setting)
    return None if declared is None else (declared.examples or [None])[0]


def element_tasks(entry: ModelEntry) -> Mapping[str, str]:
    """The tasks that a model was trained on, with their prompts: its family's, unless the entry names some of them."""
    tasks = tasks_of(entry.family)
    return tasks if entry.tasks is None else {name: tasks[name] for name in tasks if name in entry.tasks}


def default_element(entry: ModelEntry) -> str:
    """The task of an image that is read whole: the entry's own, else its first, else its family's.

    The family must be one of those that this version supports.
    """
    if entry.task is not None and entry.task != DOCUMENT:
        return entry.task
    if entry.tasks:
        return entry.tasks[0]
    rules = _rules(entry.family)
    assert rules is not None, f"{entry.family} is known by name only"
    return rules.default_task


def default_task(entry: ModelEntry, images: int = 1) -> str:
    """The task of an image that comes without a prompt: the entry's own, else ``document`` where there is a detector.

    images : number of images; several are never read by parts.
    """
    if has_detector(entry) and images == 1 and entry.task in (None, DOCUMENT):
        return DOCUMENT
    return default_element(entry)


def _words(prompt: str) -> str:
    return prompt.replace(IMAGE_SLOT, "").strip()


def _rules(family: str) -> FamilyClass | None:
    return FAMILIES[family].rules if family in FAMILIES else None
