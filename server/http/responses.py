"""POST /v1/responses, plain and as the typed event stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import falcon

from runtime.confidence import TokenLogprob
from runtime.requests import Finished, TextDelta
from server.api_errors import ApiError

from . import sse
from .answers import engine_error, extension, is_truncated, logprobs_of
from .asked import Asked
from .endpoint import Endpoint
from .logs import RequestRecord
from .messages import from_responses
from .running import RunningRequest
from .schema import ResponsesBody, ResponsesRequest, reading_of, settings_of

_BUDGET = "max_output_tokens"


class Responses:
    """OpenAI's responses. Responses are not stored, and cannot be fetched or continued by id."""

    path = "/v1/responses"

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        with self._endpoint.exchange(req, resp, self.path, "input") as exchange:
            body = exchange.body(ResponsesRequest)
            prompt = from_responses(body.input, body.instructions)
            body = body.model_copy(update={"input": []})  # the body lives as long as the answer
            running = exchange.start(Asked(prompt, body.model, settings_of(body), reading_of(body)))
            if body.stream:
                exchange.stream(running, _chunks(body, running), partial(_failure, body, running.record))
            else:
                resp.media = _finished(_response(body, running.record), running, *running.collect())


def _chunks(body: ResponsesBody, running: RunningRequest) -> Iterator[bytes]:
    def event(name: str, **fields: Any) -> bytes:
        return _event(running.record, name, **fields)

    response = _response(body, running.record)
    item = _item(running.record.id, "in_progress", [])
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield event("response.created", response=response)
    yield event("response.in_progress", response=response)
    yield event("response.output_item.added", output_index=0, item=item)
    yield event("response.content_part.added", **place, part=_part(""))
    for step in running.events():
        if step is None:
            yield sse.PING
        elif isinstance(step, str):
            yield event("response.ocr.stage", stage=step)
        elif isinstance(step, TextDelta):
            yield event("response.output_text.delta", **place, delta=step.text, logprobs=logprobs_of(step.logprobs))
        elif step.detail == "error":
            raise engine_error(step)
        else:
            text = running.text
            final = _finished(response, running, text, step)
            yield event("response.output_text.done", **place, text=text, logprobs=logprobs_of(running.logprobs))
            yield event("response.content_part.done", **place, part=_part(text, running.logprobs))
            yield event("response.output_item.done", output_index=0, item=final["output"][0])
            yield event(f"response.{final['status']}", response=final)


def _failure(body: ResponsesBody, record: RequestRecord, error: ApiError) -> bytes:
    response = _response(body, record) | {
        "status": "failed",
        "error": {"code": "server_error", "message": error.message},
    }
    return _event(record, "response.failed", response=response)


def _event(record: RequestRecord, name: str, **fields: Any) -> bytes:
    return sse.event({"type": name, "sequence_number": next(record.event_numbers), **fields}, name)


def _response(body: ResponsesBody, record: RequestRecord) -> dict[str, Any]:
    """The response object before the first token."""
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


def _finished(response: dict[str, Any], running: RunningRequest, text: str, finished: Finished) -> dict[str, Any]:
    """The response object with its text, status and counts."""
    status = "incomplete" if is_truncated(finished) else "completed"
    reasons = {"max_tokens": "max_output_tokens", "context": "max_output_tokens"}
    usage = finished.usage
    return response | {
        "status": status,
        "incomplete_details": None
        if status == "completed"
        else {"reason": reasons.get(finished.detail, finished.detail)},
        "output": [_item(running.record.id, status, [_part(text, running.logprobs)])],
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "image_tokens": usage.image_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
        "ocr": extension(finished, running.record.id, _BUDGET, running.report()),
    }


def _item(request_id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": f"msg_{request_id}", "type": "message", "role": "assistant", "status": status, "content": content}


def _part(text: str, tokens: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs_of(tokens)}
