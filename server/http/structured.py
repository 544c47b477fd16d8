"""Answers that follow a JSON schema: the fields by which OpenAI's APIs and vLLM's ask for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from models.extraction import ANY_OBJECT, schema_text
from models.model_errors import InvalidInput
from server.api_errors import BadRequest


@dataclass(frozen=True)
class AnswerSchema:
    """schema : JSON text. field : of the body, which holds the schema."""

    schema: str
    field: str


class Body(Protocol):
    """A checked body; fields that its API lacks are None."""

    response_format: dict[str, Any] | None
    text: dict[str, Any] | None
    guided_json: Any
    structured_outputs: dict[str, Any] | None


def structure_of(body: Body) -> AnswerSchema | None:
    """The schema that the answer must follow; None: no schema.

    Raises
    ------
    BadRequest
        for a missing or invalid schema, and for two schemas at once.
    """
    asked = [
        ("response_format", _wanted(body.response_format, "response_format")),
        ("text.format", _wanted((body.text or {}).get("format"), "text.format")),
        ("guided_json", body.guided_json),
        ("structured_outputs", (body.structured_outputs or {}).get("json")),
    ]
    given = [(field, schema) for field, schema in asked if schema is not None]
    if not given:
        return None
    if len(given) > 1:
        raise BadRequest(f"{given[0][0]} and {given[1][0]} both ask for a schema; send one of them", param=given[1][0])
    field, schema = given[0]
    try:
        return AnswerSchema(schema_text(schema), field)
    except InvalidInput as error:
        raise BadRequest(f"{field}: {error}", param=field) from error


def _wanted(format: Any, field: str) -> Any:
    """The schema of a format: Chat Completions nests it one level deeper than Responses."""
    kind = format.get("type") if isinstance(format, dict) else None
    if kind == "json_object":
        return ANY_OBJECT
    if kind != "json_schema":
        return None
    holder = format.get("json_schema", format)
    schema = holder.get("schema") if isinstance(holder, dict) else None
    if schema is None:
        raise BadRequest(f"{field} has type json_schema and no schema; send the schema beside its name", param=field)
    return schema
