"""/openapi.json, made from the request schemas."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import falcon
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .mistral.schema import OcrRequest
from .paddlex.schema import LayoutParsingRequest
from .schema import ChatRequest, ResponsesRequest

_ERRORS = {
    "400": "the request cannot be carried out as it stands",
    "401": "a valid API key is needed",
    "404": "no such model",
    "413": "the body, an image or a document is too large, or has too many pages",
    "415": "the body is not JSON",
    "503": "busy, loading or shutting down; Retry-After says when to try again",
}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document of this server."""
    bodies: list[type[BaseModel]] = [ChatRequest, ResponsesRequest, OcrRequest, LayoutParsingRequest]
    _, definitions = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    schemas = {
        **definitions["$defs"],
        "Error": _ERROR,
        "Answer": _ANSWER,
        "Ocr": _OCR,
        "OcrAnswer": _OCR_ANSWER,
        "LayoutParsingAnswer": _LAYOUT_PARSING,
        "LayoutParsingError": {
            **_LAYOUT_PARSING,
            "properties": _LAYOUT_PARSING_HEAD,
            "required": [*_LAYOUT_PARSING_HEAD],
        },
        "File": _FILE,
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ocr-onnx",
            "version": _version(),
            "description": "OCR with vision-language models, behind OpenAI's API.",
        },
        "paths": {
            "/v1/chat/completions": {"post": _generation("createChatCompletion", "ChatRequest")},
            "/v1/responses": {"post": _generation("createResponse", "ResponsesRequest")},
            "/v1/ocr": {"post": _json("ocr", "OcrRequest", "OcrAnswer", *_ERRORS)},
            "/layout-parsing": {"post": _layout_parsing()},
            "/v1/ocr/jobs": {
                "get": _get("listOcrJobs", "this key's jobs, without their results", "401"),
                "post": _json("submitOcrJob", "OcrRequest", "OcrJob", *_ERRORS, status="202"),
            },
            "/v1/ocr/jobs/{job_id}": {
                "get": _get("getOcrJob", "state, pages done, and the result when it has succeeded", "401", "404"),
                "delete": _get("deleteOcrJob", "the job is ended and forgotten", "401", "404"),
                "parameters": [_path("job_id")],
            },
            "/v1/ocr/jobs/{job_id}/cancel": {
                "post": _get("cancelOcrJob", "the job will end early", "401", "404"),
                "parameters": [_path("job_id")],
            },
            "/v1/files": {
                "get": _get("listFiles", "this key's files", "401"),
                "post": {"operationId": "uploadFile", "requestBody": _FORM, "responses": _responses("File", *_ERRORS)},
            },
            "/v1/files/{file_id}": {
                "get": _get("getFile", "what is known of the file", "401", "404"),
                "delete": _get("deleteFile", "the file is gone", "401", "404"),
                "parameters": [_path("file_id")],
            },
            "/v1/files/{file_id}/content": {
                "get": _get("getFileContent", "the file itself", "401", "404", media="application/octet-stream"),
                "parameters": [_path("file_id")],
            },
            "/v1/files/{file_id}/url": {
                "get": _get("getSignedUrl", "an address of the file that works without a key", "400", "401", "404"),
                "parameters": [
                    _path("file_id"),
                    {
                        "name": "expiry",
                        "in": "query",
                        "schema": {"type": "integer", "minimum": 1},
                        "description": "hours",
                    },
                ],
            },
            "/v1/models": {"get": _get("listModels", "the models that can be asked for", "401")},
            "/v1/models/{model_id}": {
                "get": _get("getModel", "one model", "401", "404"),
                "parameters": [_path("model_id")],
            },
            "/health": {"get": _public("health", "the server lives")},
            "/v1/health": {"get": _public("healthV1", "the server lives")},
            "/ready": {"get": _public("ready", "a model is loaded and new work is taken", "503")},
            "/metrics": {"get": _get("metrics", "counters in Prometheus' text format", "401", media="text/plain")},
            "/openapi.json": {"get": _get("openapi", "this document", "401")},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
        "security": [{}, {"key": []}, {"header": []}],
    }


class OpenApi:
    """GET /openapi.json."""

    def __init__(self) -> None:
        self._document = document()

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = self._document


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


_ANSWER = {
    "type": "object",
    "description": "OpenAI's object, and what its API has no field for",
    "properties": {"ocr": {"$ref": "#/components/schemas/Ocr"}},
}

_INTEGER = {"type": "integer"}
_CONFIDENCE = {
    "type": "object",
    "description": "probabilities that the model itself gave the tokens of the text",
    "properties": {"mean": {"type": "number"}, "lowest": {"type": "number"}},
}
_PAGE = {
    "type": "object",
    "required": ["page", "width", "height"],
    "properties": {
        "page": {"type": "integer", "description": "number, from 1"},
        "width": {"type": "integer", "description": "pixels of the page as it came; 0 when it could not be drawn"},
        "height": _INTEGER,
        "dpi": {"type": "number", "description": "dots per inch of these pixels, where the document tells a size"},
        "rotated": {
            "enum": [90, 180, 270],
            "description": "degrees clockwise by which the page was turned to be read (orient); else absent",
        },
        "start": {"type": "integer", "description": "where the page's text begins in the answer, in characters"},
        "end": _INTEGER,
        "finish_detail": {"type": "string"},
        "completion_tokens": _INTEGER,
        "confidence": _CONFIDENCE,
        "error": {"type": "string", "description": "why the page could not be read"},
    },
}
_BOX = {
    "type": "object",
    "required": ["label", "text", "box", "page"],
    "properties": {
        "label": {"type": "string", "description": "title, text, table, image ..., or the words that were looked for"},
        "text": {"type": "string", "description": "what the answer says of it"},
        "box": {
            "type": "array",
            "description": "x0, y0, x1, y1 in pixels of the page as it came",
            "items": _INTEGER,
            "minItems": 4,
            "maxItems": 4,
        },
        "page": _INTEGER,
    },
}
_OCR = {
    "type": "object",
    "description": "why the answer ended, where the time went; on a stream's last event",
    "properties": {
        "finish_detail": {
            "type": "string",
            "enum": ["eos", "stop_string", "max_tokens", "context", "loop", "deadline", "cancelled", "no_image"],
        },
        "timings": {
            "type": "object",
            "description": "seconds by stage; of a document, the sum over its pages",
            "additionalProperties": {"type": "number"},
        },
        "tokens_per_second": {"type": ["number", "null"], "description": "of decoding, one page's row"},
        "warning": {"type": "string", "description": "what was cut off, and the setting to raise"},
        "confidence": _CONFIDENCE,
        "prompt_ignored": {
            "type": "boolean",
            "description": "the model knows only its own prompts, and got one of those",
        },
        "pages": {"type": "array", "description": "of a document or of an image with boxes", "items": _PAGE},
        "pages_not_read": {"type": "array", "description": "numbers; the deadline had passed", "items": _INTEGER},
        "boxes": {"type": "array", "description": "when the request has ocr.boxes", "items": _BOX},
    },
}


_LAYOUT_PARSING_HEAD = {
    "logId": {"type": "string"},
    "errorCode": {"type": "integer", "description": "0, or the status of an error"},
    "errorMsg": {"type": "string"},
}
_LAYOUT_PARSING = {
    "type": "object",
    "required": ["logId", "errorCode", "errorMsg", "result"],
    "properties": {
        **_LAYOUT_PARSING_HEAD,
        "result": {
            "type": "object",
            "properties": {
                "layoutParsingResults": {
                    "type": "array",
                    "description": "a page each",
                    "items": {
                        "type": "object",
                        "properties": {
                            "prunedResult": {"type": "object", "description": "blocks, and what the detector found"},
                            "markdown": {"type": "object", "description": "text, and images (base64) by their paths"},
                            "outputImages": {"type": ["object", "null"], "description": "with visualize"},
                        },
                    },
                },
                "dataInfo": {"type": "object"},
            },
        },
    },
}
_OCR_ANSWER = {
    "type": "object",
    "description": "Mistral's answer, and what it has no field for",
    "required": ["pages", "model", "usage_info"],
    "properties": {
        "pages": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "markdown", "images", "dimensions"],
                "properties": {
                    "index": {"type": "integer", "description": "from 0"},
                    "markdown": {"type": "string", "description": "figures as ![id](id), tables as [id](id)"},
                    "images": {"type": "array", "items": {"type": "object"}, "description": "id, corners in pixels"},
                    "dimensions": {"type": "object", "description": "dpi, width and height of the page as it was read"},
                    "tables": {"type": "array", "items": {"type": "object"}, "description": "with table_format"},
                    "blocks": {"type": "array", "items": {"type": "object"}, "description": "with include_blocks"},
                    "error": {"type": "string", "description": "why the page could not be read"},
                },
            },
        },
        "model": {"type": "string"},
        "usage_info": {"type": "object", "description": "pages_processed, doc_size_bytes"},
        "ocr": {"$ref": "#/components/schemas/Ocr"},
    },
}
_JOB = {
    "type": "object",
    "required": ["id", "object", "status", "model", "created_at"],
    "properties": {
        "status": {"type": "string", "enum": ["queued", "running", "succeeded", "failed", "cancelled"]},
        "pages_total": {"type": ["integer", "null"], "description": "null until the document has been opened"},
        "pages_done": {"type": "integer"},
        "error": {"type": ["object", "null"]},
        "result": {"oneOf": [{"$ref": "#/components/schemas/OcrAnswer"}, {"type": "null"}]},
    },
}
_FILE = {"type": "object", "required": ["id", "object", "size_bytes", "created_at", "filename", "purpose"]}
_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string"}},
            }
        }
    },
}


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _layout_parsing() -> dict[str, Any]:
    """PaddleX's own form, for errors too."""
    described = _json("layoutParsing", "LayoutParsingRequest", "LayoutParsingAnswer", *_ERRORS)
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/LayoutParsingError"}}}
    for status, response in described["responses"].items():
        if status not in ("200", "401"):
            response["content"] = error
    return described


def _json(operation: str, body: str, answer: str, *errors: str, status: str = "200") -> dict[str, Any]:
    reference = {"schema": {"$ref": f"#/components/schemas/{body}"}}
    return {
        "operationId": operation,
        "requestBody": {"required": True, "content": {"application/json": reference}},
        "responses": _responses(answer, *errors, status=status),
    }


def _responses(answer: str, *errors: str, status: str = "200") -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}}
    return {status: {"description": "the answer", "content": content}, **_errors(*errors)}


def _generation(operation: str, body: str) -> dict[str, Any]:
    reference = {"schema": {"$ref": f"#/components/schemas/{body}"}}
    answer = {
        "description": "the answer, or its events when stream is true",
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Answer"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
    return {
        "operationId": operation,
        "requestBody": {"required": True, "content": {"application/json": reference}},
        "responses": {"200": answer, **_errors(*_ERRORS)},
    }


def _get(operation: str, description: str, *errors: str, media: str = "application/json") -> dict[str, Any]:
    return {
        "operationId": operation,
        "responses": {"200": {"description": description, "content": {media: {"schema": {}}}}, **_errors(*errors)},
    }


def _public(operation: str, description: str, *statuses: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}}
    return {
        "operationId": operation,
        "security": [],
        "responses": {
            status: {"description": description if status == "200" else "not now", "content": content}
            for status in ("200", *statuses)
        },
    }


def _errors(*statuses: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": _ERRORS[status], "content": content} for status in statuses}


def _version() -> str:
    try:
        return metadata.version("ocr-onnx")
    except metadata.PackageNotFoundError:
        return "0"
