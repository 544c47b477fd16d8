"""POST /v1/responses, plain and as the typed event stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from runtime.confidence import TokenLogprob
from runtime.requests import Finished, TextDelta
from server.api_errors import ApiError

from . import sse
from .answers import engine_error, extension, is_truncated, logprobs_of
from .endpoint import GenerationEndpoint
from .generate import Job
from .logs import RequestRecord
from .messages import Prompt, from_responses
from .schema import ResponsesRequest

_BUDGET = "max_output_tokens"


class Responses(GenerationEndpoint):
    """OpenAI's responses. Nothing is stored: a response cannot be fetched again or continued by its id."""

    path = "/v1/responses"
    request_model = ResponsesRequest
    content = "input"

    def prompt(self, body: Any) -> Prompt:
        return from_responses(body.input, body.instructions)

    def answer(self, body: Any, job: Job, text: str, finished: Finished) -> dict[str, Any]:
        return _finished(_response(body, job.record), job, text, finished)

    def chunks(self, body: Any, job: Job) -> Iterator[bytes]:
        def event(name: str, **fields: Any) -> bytes:
            return _event(job.record, name, **fields)

        response = _response(body, job.record)
        item = _item(job.record.id, "in_progress", [])
        place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        yield event("response.created", response=response)
        yield event("response.in_progress", response=response)
        yield event("response.output_item.added", output_index=0, item=item)
        yield event("response.content_part.added", **place, part=_part(""))
        for step in job.events():
            if step is None:
                yield sse.PING
            elif isinstance(step, str):
                yield event("response.ocr.stage", stage=step)
            elif isinstance(step, TextDelta):
                yield event("response.output_text.delta", **place, delta=step.text, logprobs=logprobs_of(step.logprobs))
            elif step.detail == "error":
                raise engine_error(step)
            else:
                text = job.text
                final = _finished(response, job, text, step)
                yield event("response.output_text.done", **place, text=text, logprobs=logprobs_of(job.logprobs))
                yield event("response.content_part.done", **place, part=_part(text, job.logprobs))
                yield event("response.output_item.done", output_index=0, item=final["output"][0])
                yield event(f"response.{final['status']}", response=final)

    def failure(self, body: Any, record: RequestRecord, error: ApiError) -> bytes:
        response = _response(body, record) | {
            "status": "failed",
            "error": {"code": "server_error", "message": error.message},
        }
        return _event(record, "response.failed", response=response)


def _event(record: RequestRecord, name: str, **fields: Any) -> bytes:
    return sse.event({"type": name, "sequence_number": next(record.event_numbers), **fields}, name)


def _response(body: Any, record: RequestRecord) -> dict[str, Any]:
    """The response object as it stands before the first token."""
    return {
        "id": f"resp_{record.id}",
        "object": "response",
        "created_at": record.created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "store": False,
        "temperature": body.temperature,
        "text": body.text or {"format": {"type": "text"}},
        "tool_choice": "none",
        "tools": [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _finished(response: dict[str, Any], job: Job, text: str, finished: Finished) -> dict[str, Any]:
    """The response object with its text, status and counts."""
    status = "incomplete" if is_truncated(finished) else "completed"
    reasons = {"max_tokens": "max_output_tokens", "context": "max_output_tokens"}
    usage = finished.usage
    return response | {
        "status": status,
        "incomplete_details": None
        if status == "completed"
        else {"reason": reasons.get(finished.detail, finished.detail)},
        "output": [_item(job.record.id, status, [_part(text, job.logprobs)])],
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "image_tokens": usage.image_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
        "ocr": extension(finished, job.record.id, _BUDGET, job.report()),
    }


def _item(request_id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": f"msg_{request_id}", "type": "message", "role": "assistant", "status": status, "content": content}


def _part(text: str, tokens: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs_of(tokens)}
