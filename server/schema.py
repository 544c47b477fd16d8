"""What clients may send: the request bodies as pydantic models, from which /openapi.json is made too.

Fields that OpenAI's clients send and that mean nothing here (``user``, ``tools``, ``frequency_penalty`` ...) are
accepted and ignored.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model
from pydantic_core import from_json

from models import precedence

from .errors import BadRequest

_TYPES: dict[precedence.Kind, Any] = {
    "integer": int | None,
    "number": float | None,
    "boolean": bool | None,
    "strings": str | list[str] | None,
    "integers": list[int] | None,
}


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


def _setting_fields() -> dict[str, Any]:
    return {
        spelling: (_TYPES[setting.kind], Field(default=None, description=setting.help))
        for setting in precedence.SETTINGS
        for spelling in setting.spellings
    }


class TextPart(_Lenient):
    """Text; may hold ``<image>`` slots for the request's images."""

    type: Literal["text", "input_text"]
    text: str


class ImageUrl(_Lenient):
    """Where an image is."""

    url: str = Field(description="data: URL with base64, or an http(s) address where the server allows it")


class ImagePart(_Lenient):
    """An image, by data: URL or address."""

    type: Literal["image_url", "input_image"]
    image_url: ImageUrl | str


class OtherPart(_Lenient):
    """Any other content; accepted in the conversation's history only."""

    type: str


ContentPart = TextPart | ImagePart | OtherPart


class Message(_Lenient):
    """One message. System and developer messages and the latest user message become the prompt."""

    role: str = Field(description="system, developer or user; others are history and are not read")
    content: str | list[ContentPart] | None = None


class StreamOptions(_Lenient):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(default=None, description="send the token counts in a last chunk")


class ResponseItem(_Lenient):
    """One item of a Responses request's input."""

    type: str | None = None
    role: str | None = None
    content: str | list[ContentPart] | None = None


class _Base(_Lenient):
    model: str = Field(description="id of a model; see /v1/models")
    stream: bool | None = Field(default=None, description="send server-sent events")


class _ChatBase(_Base):
    messages: list[Message] = Field(min_length=1)
    n: int | None = Field(default=None, description="only 1 is supported")
    stream_options: StreamOptions | None = None


class _ResponsesBase(_Base):
    input: str | list[ResponseItem]
    instructions: str | None = None
    background: bool | None = Field(default=None, description="only false is supported")
    metadata: dict[str, JsonValue] | None = None


ChatRequest = create_model("ChatRequest", __base__=_ChatBase, __doc__="A chat completion.", **_setting_fields())
ResponsesRequest = create_model("ResponsesRequest", __base__=_ResponsesBase, __doc__="A response.", **_setting_fields())


def settings_of(body: _Base) -> dict[str, Any]:
    """The inference settings that the body sets, by field name.

    Raises
    ------
    InvalidInput
        for two spellings of one setting that disagree.
    """
    return precedence.from_body({name: getattr(body, name) for name in _setting_fields()})


def parse(raw: bytes, model: type[_Base]) -> Any:
    """Read a JSON body.

    Raises
    ------
    BadRequest
        naming the first field that is wrong, and what was expected.
    """
    try:
        document = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise BadRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(document, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> BadRequest:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    # In a union every alternative reports; the one that got deepest into the document is what the client meant.
    problem = max(problems, key=lambda one: len(_location(one["loc"])))
    where = ".".join(map(str, _location(problem["loc"])))
    message = "is required" if problem["type"] == "missing" else problem["msg"]
    return BadRequest(f"{where}: {message}", param=where)


_TYPE_NAMES = frozenset({"str", "int", "float", "bool", "dict", "list"})


def _location(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Without the names of types that pydantic inserts for the alternatives of a union."""
    return tuple(
        part
        for part in location
        if isinstance(part, int) or (part.islower() and "[" not in part and part not in _TYPE_NAMES)
    )
