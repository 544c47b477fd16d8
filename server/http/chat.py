"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from runtime.confidence import TokenLogprob
from runtime.requests import Finished, TextDelta
from server.api_errors import ApiError, error_body

from . import sse
from .answers import engine_error, extension, is_truncated, logprobs_of
from .endpoint import GenerationEndpoint
from .generate import Job
from .logs import RequestRecord
from .messages import Prompt, from_chat
from .schema import ChatRequest

_BUDGET = "max_tokens"


class ChatCompletions(GenerationEndpoint):
    """OpenAI's chat completions."""

    path = "/v1/chat/completions"
    request_model = ChatRequest
    content = "messages"

    def prompt(self, body: Any) -> Prompt:
        return from_chat(body.messages)

    def answer(self, body: Any, job: Job, text: str, finished: Finished) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            **_head(job.record, body.model, "chat.completion"),
            "choices": [_choice(body, job.logprobs, message=message, finish_reason=_reason(finished))],
            "usage": _usage(finished),
            "ocr": extension(finished, job.record.id, _BUDGET, job.report()),
        }

    def chunks(self, body: Any, job: Job) -> Iterator[bytes]:
        head = _head(job.record, body.model, "chat.completion.chunk")
        with_usage = bool(body.stream_options and body.stream_options.include_usage)

        def chunk(
            delta: dict[str, Any], finish_reason: str | None = None, tokens: Sequence[TokenLogprob] = (), **more: Any
        ) -> bytes:
            choice = _choice(body if tokens else None, tokens, delta=delta, finish_reason=finish_reason)
            # With include_usage every chunk but the last has a null there.
            return sse.event({**head, "choices": [choice], **({"usage": None} if with_usage else {}), **more})

        yield chunk({"role": "assistant", "content": ""})
        for event in job.events():
            if event is None:
                yield sse.PING
            elif isinstance(event, str):
                yield sse.event({**head, "choices": [], "ocr": {"stage": event}})
            elif isinstance(event, TextDelta):
                yield chunk({"content": event.text}, tokens=event.logprobs)
            elif event.detail == "error":
                raise engine_error(event)
            else:
                yield chunk({}, _reason(event), ocr=extension(event, job.record.id, _BUDGET, job.report()))
                if with_usage:
                    yield sse.event({**head, "choices": [], "usage": _usage(event)})
        yield sse.DONE

    def failure(self, body: Any, record: RequestRecord, error: ApiError) -> bytes:
        return sse.event(error_body(error.status_code, error.message, code=error.error_code)) + sse.DONE


def _choice(body: Any, tokens: Sequence[TokenLogprob], **fields: Any) -> dict[str, Any]:
    told = {"content": logprobs_of(tokens), "refusal": None} if body is not None and body.logprobs else None
    return {"index": 0, **fields, "logprobs": told}


def _head(record: RequestRecord, model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{record.id}", "object": kind, "created": record.created, "model": model}


def _reason(finished: Finished) -> str:
    """OpenAI knows ``stop`` and ``length``; the finer reason is in the ``ocr`` field."""
    return "length" if is_truncated(finished) else "stop"


def _usage(finished: Finished) -> dict[str, Any]:
    usage = finished.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": usage.image_tokens},
    }
