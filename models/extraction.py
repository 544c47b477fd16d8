"""Structured extraction: a JSON schema that an answer follows, and the template in the prompt.

Some models were trained to fill a JSON template with empty values; their family names that task. The template is made
from the schema, and the answer is held to the schema token by token (``runtime.grammar``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .asking import Question, is_asked, question, tasks_for, with_slots
from .families import FAMILIES
from .model_errors import InvalidInput
from .registration import ModelEntry

MOST_CHARACTERS = 65_536  # characters of a schema
MOST_FIELDS = 2_000  # fields of a template
ANY_OBJECT = '{"type": "object"}'


def schema_text(schema: Any) -> str:
    """A schema as JSON text, from text or from parsed JSON.

    Raises
    ------
    InvalidInput
        for anything but a JSON object, and for one of more than ``MOST_CHARACTERS``.
    """
    if isinstance(schema, (str, bytes)):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise InvalidInput(f"the schema is not valid JSON: {error}") from error
    if not isinstance(schema, Mapping):
        raise InvalidInput(f"the schema is a {type(schema).__name__}; a JSON schema is an object with keys like type")
    text = json.dumps(schema, ensure_ascii=False)
    if len(text) > MOST_CHARACTERS:
        raise InvalidInput(f"the schema has {len(text):,} characters; it may have {MOST_CHARACTERS:,}")
    return text


def extraction_task(entry: ModelEntry) -> str | None:
    """The task by which a model is asked for fields; None for a model without one."""
    family = FAMILIES.get(entry.family)
    task = None if family is None else family.extraction
    return task if task in tasks_for(entry) else None


def extraction(entry: ModelEntry, task: str | None, words: str, schema: str, images: int) -> Question:
    """The question for an answer that follows a schema: the model's own prompt for that, with the schema's template.

    The client's words take the prompt's place where they are such a prompt, and the template's where the task is named.

    Raises
    ------
    InvalidInput
        for a model that cannot be asked for fields, for another task, and where neither the client nor the schema gives
        a template.
    """
    own, words = extraction_task(entry), words.strip()
    if own is None:
        able = [model.id for family in FAMILIES.values() if family.extraction for model in family.models]
        others = f"; models that can: {', '.join(able)}" if able else ""
        raise InvalidInput(f"model {entry.id} cannot be asked for fields, so no answer follows a schema{others}")
    if task is not None and task != own:
        raise InvalidInput(f"task {task[:60]!r} takes no schema; leave the task out, or take {own}")
    if words and task == own:
        return question(entry, task, words, images)
    if is_asked(tasks_for(entry)[own], words):
        return Question(with_slots(words, images))
    return Question(question(entry, own, template(schema), images).prompt, ignored=bool(words))


def template(schema: str) -> str:
    """The JSON that a model is asked to fill: every value a schema describes, empty.

    Raises
    ------
    InvalidInput
        for a schema without properties, and for one of more than ``MOST_FIELDS``.
    """
    empty = _Template(json.loads(schema)).value()
    if not isinstance(empty, (dict, list)) or not empty:
        raise InvalidInput("the schema names no properties, so the model cannot be told what to look for; add some")
    return json.dumps(empty, ensure_ascii=False, indent=2)


class _Template:
    """Makes the empty values of one schema."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._fields = 0

    def value(self) -> Any:
        return self._empty(self._root, ("#",))

    def _empty(self, schema: Any, within: tuple[str, ...]) -> Any:
        """within : references being followed; a cycle ends with an empty text."""
        self._fields += 1
        if self._fields > MOST_FIELDS:
            raise InvalidInput(f"the schema describes more than {MOST_FIELDS:,} fields; ask for fewer")
        if not isinstance(schema, Mapping):
            return ""
        if isinstance(reference := schema.get("$ref"), str):
            return "" if reference in within else self._empty(self._referred(reference), (*within, reference))
        for choice in ("anyOf", "oneOf", "allOf"):
            options = schema.get(choice)
            for option in options if isinstance(options, list) else ():
                if found := self._empty(option, within):
                    return found
        if isinstance(properties := schema.get("properties"), Mapping):
            return {str(name): self._empty(value, within) for name, value in properties.items()}
        return [self._empty(schema["items"], within)] if "items" in schema else ""

    def _referred(self, reference: str) -> Any:
        """The target of a reference within the schema; None where there is none."""
        found: Any = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        return found
