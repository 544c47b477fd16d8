"""The request bodies of clients as pydantic models, from which /openapi.json is made, too.

Fields of OpenAI's clients without a meaning here (``user``, ``tools`` ...) are accepted and ignored; those that ask for
something impossible are refused (see ``unsupported``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model, model_validator
from pydantic_core import from_json

from models import precedence
from models.layout.page_rules import PageRules
from runtime.documents import DEFAULT_DPI, DPI_RANGE
from server.api_errors import BadRequest, TooLarge

from . import unsupported
from .structured import AnswerSchema, structure_of

_TYPES: dict[precedence.Kind, Any] = {
    "integer": int | None,
    "number": float | None,
    "boolean": bool | None,
    "strings": str | list[str] | None,
    "integers": list[int] | None,
    "word": str | None,
}


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


def setting_fields() -> dict[str, Any]:
    """Fields of a pydantic model: every inference setting in all its spellings."""
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


_FILE_DATA = "data: URL with base64: a PDF, or an image (of a TIFF every frame is a page)"


class FileData(_Lenient):
    """A file in a chat message."""

    file_data: str | None = Field(default=None, description=_FILE_DATA)


class FilePart(_Lenient):
    """A document, which is read page by page; ``file`` in chat messages, the other two in Responses input."""

    type: Literal["file", "input_file"]
    file: FileData | None = None
    file_data: str | None = Field(default=None, description=_FILE_DATA)

    @property
    def data(self) -> str | None:
        """The data: URL, wherever it stands."""
        return self.file_data if self.file is None else self.file.file_data


class OtherPart(_Lenient):
    """Any other content; accepted in the conversation's history only."""

    type: str


ContentPart = TextPart | ImagePart | FilePart | OtherPart


MAX_PARTS = 1000  # parts of one message
MAX_MESSAGES = 10_000
MAX_VALUES = 1_000_000  # brackets and commas of a body; base64 has none

# Bounded, since every alternative of a union reports errors for every item.
Content = str | Annotated[list[ContentPart], Field(max_length=MAX_PARTS)] | None


class Message(_Lenient):
    """One message. The latest user message is the prompt; its images, or the newest before it, are read."""

    role: str = Field(description="user, tool (whose images count), assistant, system or developer")
    content: Content = None


class StreamOptions(_Lenient):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(default=None, description="send the token counts in a last chunk")


_TASK = Field(
    default=None,
    max_length=100,
    description="what to do with the image instead of a prompt; /v1/models lists the tasks",
)


class OcrOptions(BaseModel):
    """What OpenAI's API has no field for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: str | None = _TASK
    raw: bool | None = Field(default=None, description="the text as the model writes it: tables as OTSL ...")
    boxes: bool | None = Field(default=None, description="add ocr.boxes to the answer: what stands where on the page")
    progress: bool | None = Field(
        default=None, description="a stream tells when the page is queued, seen and read, as chunks without choices"
    )
    pages: str | None = Field(
        default=None, max_length=1000, description="pages of the document to read, such as 1-5,9 or 12-; default: all"
    )
    password: str | None = Field(default=None, max_length=1000, description="of an encrypted PDF", repr=False)
    orient: Literal["off", "auto"] | None = Field(
        default=None,
        description="auto turns pages upright by their text; pages that were turned say so: ocr.pages.rotated",
    )
    dpi: int | None = Field(
        default=None,
        ge=DPI_RANGE[0],
        le=DPI_RANGE[1],
        description=f"dots per inch at which the pages of a document are drawn; default: {DEFAULT_DPI}, and no page "
        "larger than the model can make use of",
    )


@dataclass(frozen=True)
class ReadingOptions:
    """How a request wants its images read: ``task`` and ``ocr`` of its body."""

    task: str | None = None
    raw: bool = False
    boxes: bool = False
    pages: str | None = None
    progress: bool = False
    password: str | None = field(default=None, repr=False)
    alternatives: int | None = None  # alternatives told with each token's log-probability; None: neither
    structure: AnswerSchema | None = None  # the schema that the answer follows
    rules: Mapping[str, Any] = field(default_factory=dict)  # changes of the layout rules
    page: PageRules | None = None  # the resulting layout rules; None: the model's
    dpi: int | None = None  # dots per inch of a document's pages; None: the default, and no more than the model sees

    @property
    def schema(self) -> str | None:
        """JSON text of the schema that the answer follows."""
        return None if self.structure is None else self.structure.schema


class ResponseItem(_Lenient):
    """One item of a Responses request's input."""

    type: str | None = None
    role: str | None = None
    content: Content = None
    output: Content | dict[str, JsonValue] = Field(default=None, description="what a tool gave; its images count")


class VllmArguments(BaseModel):
    """The n-gram guard as the recipe of DeepSeek-OCR's authors for vLLM spells it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ngram_size: int | None = None
    window_size: int | None = None
    whitelist_token_ids: list[int] | None = None


LOGPROBS = "message.output_text.logprobs"  # value in ``include`` of a Responses request


class _Body(_Lenient):
    model: str = Field(description="id of a model; see /v1/models")
    stream: bool | None = Field(default=None, description="send server-sent events")
    task: str | None = _TASK
    ocr: OcrOptions | None = None
    vllm_xargs: VllmArguments | None = None
    top_logprobs: int | None = Field(default=None, description="most probable tokens in each place, at most 20")
    response_format: dict[str, JsonValue] | None = Field(
        default=None, description="json_schema or json_object, for models that can be asked for fields"
    )
    text: dict[str, JsonValue] | None = Field(default=None, description="its format is Responses' response_format")
    guided_json: str | dict[str, JsonValue] | None = Field(default=None, description="a JSON schema, as in vLLM")
    structured_outputs: dict[str, JsonValue] | None = Field(default=None, description="json: a JSON schema")

    def alternatives(self) -> int | None:
        """Number of alternatives to tell for each token; None without log-probabilities.

        Raises
        ------
        BadRequest
            for alternatives without log-probabilities.
        """
        return None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        unsupported.refuse(body)
        return body


class ChatBody(_Body):
    """See ``ChatRequest``, which has every inference setting as a field beside these."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream_options: StreamOptions | None = None
    logprobs: bool | None = Field(default=None, description="log-probabilities of the answer's tokens")

    def alternatives(self) -> int | None:
        if not self.logprobs and self.top_logprobs:
            raise BadRequest("top_logprobs needs logprobs: true beside it", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class ResponsesBody(_Body):
    """See ``ResponsesRequest``, which has every inference setting as a field beside these."""

    input: str | Annotated[list[ResponseItem], Field(max_length=MAX_MESSAGES)]
    instructions: str | None = None
    metadata: dict[str, JsonValue] | None = None
    max_output_tokens: int | None = None  # this and the next two: the answer repeats them
    temperature: float | None = None
    top_p: float | None = None
    include: list[str] | None = Field(default=None, description=f"{LOGPROBS}, for log-probabilities of the tokens")

    def alternatives(self) -> int | None:
        if self.top_logprobs is None and LOGPROBS not in (self.include or ()):
            return None
        return self.top_logprobs or 0


ChatRequest = create_model("ChatRequest", __base__=ChatBody, __doc__="A chat completion.", **setting_fields())
ResponsesRequest = create_model("ResponsesRequest", __base__=ResponsesBody, __doc__="A response.", **setting_fields())


class Checked(Protocol):
    """The part of a pydantic model that parsing needs."""

    @classmethod
    def model_validate(cls, obj: Any) -> Self: ...


class Form(Checked, Protocol):
    """What every body has that asks for a document to be read. ``model``: an id; None: the endpoint's own."""

    @property
    def model(self) -> str | None: ...
    @property
    def stream(self) -> bool | None: ...


Parsed = TypeVar("Parsed", bound=Checked)
Body = TypeVar("Body", bound=Form)


def settings_of(body: BaseModel) -> dict[str, Any]:
    """The inference settings that the body sets, by field name.

    Raises
    ------
    InvalidSetting
        for a value out of its range, and for two spellings of a setting that disagree.
    """
    values = {name: getattr(body, name) for name in setting_fields()}
    if (arguments := getattr(body, "vllm_xargs", None)) is not None:
        values |= {f"vllm_xargs.{name}": value for name, value in arguments}
    if (options := getattr(body, "ocr", None)) is not None:
        values["ocr.orient"] = options.orient
    return precedence.from_body(values)


def reading_of(body: _Body) -> ReadingOptions:
    """The body's options of tasks, boxes and pages.

    Raises
    ------
    BadRequest
        for two tasks that disagree, and for an invalid schema.
    """
    options = body.ocr or OcrOptions()
    if body.task is not None and options.task is not None and body.task != options.task:
        raise BadRequest("task and ocr.task disagree; send one of them", param="task")
    return ReadingOptions(
        body.task or options.task, bool(options.raw), bool(options.boxes), options.pages, bool(options.progress),
        options.password, body.alternatives(), structure_of(body), dpi=options.dpi,
    )  # fmt: skip


def parse(raw: bytes, model: type[Parsed]) -> Parsed:
    """Read a JSON body.

    Raises
    ------
    BadRequest
        naming the first wrong field, and what was expected.
    TooLarge
        for a body whose many small values would fill the memory.
    """
    if sum(raw.count(sign) for sign in (b"{", b"[", b",")) > MAX_VALUES:
        raise TooLarge(f"the body has more than {MAX_VALUES:,} JSON values; send fewer or shorter messages")
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
    # Every alternative of a union reports errors; the deepest one is of the alternative that the client meant.
    problem = max(problems, key=lambda one: len(_location(one["loc"])))
    where = ".".join(map(str, _location(problem["loc"])))
    message = "is required" if problem["type"] == "missing" else problem["msg"]
    code = unsupported.CODE if problem["type"] == "extra_forbidden" else None
    return BadRequest(f"{where}: {message}", param=where, code=code)


_TYPE_NAMES = frozenset({"str", "int", "float", "bool", "dict", "list"})


def _location(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """A place in the body, without the names that pydantic inserts for alternatives of a union."""
    return tuple(
        part
        for part in location
        if isinstance(part, int) or (part[:1].islower() and "[" not in part and part not in _TYPE_NAMES)
    )
