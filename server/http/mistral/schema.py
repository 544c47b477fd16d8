"""The body of /v1/ocr: Mistral's fields, and the settings of this server's other endpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from server.api_errors import BadRequest

from ..schema import ImageUrl, setting_fields

_URL = "data: URL with base64, an http(s) address where the server allows it, or a signed URL of /v1/files"


class Document(BaseModel):
    """A PDF or a picture; the one field that is there says which."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: str | None = Field(default=None, description="document_url, image_url or file")
    document_url: str | None = Field(default=None, description=_URL)
    image_url: ImageUrl | str | None = Field(default=None, description=_URL)
    file: str | None = Field(default=None, description=_URL)
    file_id: str | None = Field(default=None, description="id of a file that was uploaded to /v1/files")

    def place(self) -> tuple[str, str]:
        """Name and value of the one field that is set.

        Raises
        ------
        BadRequest
            when none is set, or several are.
        """
        image = self.image_url.url if isinstance(self.image_url, ImageUrl) else self.image_url
        fields = {"document_url": self.document_url, "image_url": image, "file": self.file, "file_id": self.file_id}
        given = {name: value for name, value in fields.items() if value is not None}
        if len(given) != 1:
            raise BadRequest(
                f"document has {' and '.join(given) or 'no address'}; it needs one of {', '.join(fields)}",
                param="document",
            )
        return next(iter(given.items()))


class OcrBody(BaseModel):
    """See ``OcrRequest``, which has every inference setting as a field beside these."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = Field(
        default=None,
        max_length=200,
        description="id of a model, see /v1/models; Mistral's own names (mistral-ocr-...) mean this server's model",
    )
    document: Document
    pages: str | Annotated[list[int], Field(max_length=10_000)] | None = Field(
        default=None, description="pages to read, counted from 0: [0, 2], or 0,2-4; default: all"
    )
    include_image_base64: bool | None = Field(default=None, description="send the figures' pictures too")
    image_limit: Annotated[int, Field(ge=0)] | None = Field(default=None, description="most figures of the document")
    image_min_size: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="smallest width and height of a figure, in pixels"
    )
    table_format: Literal["markdown", "html"] | None = Field(
        default=None, description="take tables out of the Markdown into the page's tables, in this form"
    )
    include_blocks: bool | None = Field(default=None, description="add the places that the answer names")
    task: str | None = Field(default=None, max_length=100, description="instead of the model's default task")

    # Requests for what no model here does; clients that do not want them send null or false.
    extract_header: bool | None = None
    extract_footer: bool | None = None
    bbox_annotation_format: Any = None
    document_annotation_format: Any = None
    document_annotation_prompt: Any = None
    confidence_scores_granularity: Any = None
    stream: bool | None = None


_UNSUPPORTED = (
    "extract_header", "extract_footer", "bbox_annotation_format", "document_annotation_format",
    "document_annotation_prompt", "confidence_scores_granularity", "stream",
)  # fmt: skip

OcrRequest = create_model(
    "OcrRequest", __base__=OcrBody, __doc__="A document to read, in Mistral's form.", **setting_fields()
)


def check_supported(body: OcrBody) -> None:
    """Refuse fields that would be ignored.

    Raises
    ------
    BadRequest
        naming the field.
    """
    for name in _UNSUPPORTED:
        if getattr(body, name):
            raise BadRequest(f"{name} is not supported by this server", param=name, code="unsupported_parameter")


def page_numbers(pages: str | list[int] | None) -> str | None:
    """Mistral's page list, counted from 0, as page ranges counted from 1.

    Raises
    ------
    BadRequest
        for anything but numbers and ranges.
    """
    if pages is None or pages == []:
        return None
    parts = pages.split(",") if isinstance(pages, str) else [str(page) for page in pages]
    return ",".join(_from_one(part.strip()) for part in parts)


def _from_one(part: str) -> str:
    ends = [end.strip() for end in part.split("-")]
    if len(ends) > 2 or not all(end.isascii() and end.isdigit() and len(end) <= 9 for end in ends):
        raise BadRequest(
            f'pages has {part[:60]!r}; it takes numbers and ranges, counted from 0: [0, 2] or "0,2-4"', param="pages"
        )
    return "-".join(str(int(end) + 1) for end in ends)
