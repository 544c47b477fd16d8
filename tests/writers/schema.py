"""The published schema of JSON results, made strict: what it does not name is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

FILE = Path(__file__).parents[2] / "tools" / "docs" / "result.schema.json"


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _strict(value) for key, value in schema.items()}
    return {**closed, "additionalProperties": False} if "properties" in schema and "type" in schema else closed


def validator(part: str) -> Draft202012Validator:
    """Of ``document``, ``line`` or another of its ``$defs``."""
    schema = _strict(json.loads(FILE.read_text(encoding="utf-8")))
    Draft202012Validator.check_schema(schema)
    for whole in (schema["$defs"]["line"], schema["$defs"]["document"]["properties"]["pages"]["items"]):
        whole["unevaluatedProperties"] = False
    schema["$ref"] = f"#/$defs/{part}"
    return Draft202012Validator(schema)
