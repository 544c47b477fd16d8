"""A model's settings for reading pages by their parts: rules, prompt of each element, request defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.families import FAMILIES
from models.registration import ModelEntry
from models.registry import default_element, element_tasks

from .page_rules import ELEMENTS, PLAIN, PageRules
from .task import is_document


def rules_of(entry: ModelEntry) -> PageRules:
    """The rules of a model's pages: its family's, changed by its entry.

    Raises
    ------
    InvalidInput
        for a change that cannot be made.
    """
    return (FAMILIES[entry.family].page or PLAIN).change(entry.page)


def prompts_of(entry: ModelEntry) -> Mapping[str, str]:
    """The prompt for each element; text always has one."""
    tasks = element_tasks(entry)
    elements = FAMILIES[entry.family].elements or {name: name for name in ELEMENTS}
    prompts = {element: tasks[task] for element, task in elements.items() if task in tasks}
    return {"text": tasks[default_element(entry)], **prompts}


def page_defaults(entry: ModelEntry, prompt: str) -> Mapping[str, Any]:
    """Inference settings for each part of a page that is read by its parts; none for any other prompt."""
    return rules_of(entry).settings if is_document(prompt) else {}
