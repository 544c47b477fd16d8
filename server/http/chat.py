"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import falcon

from runtime.confidence import TokenLogprob
from runtime.requests import Finished, TextDelta
from server.api_errors import ApiError, error_body

from . import sse
from .answers import engine_error, extension, is_truncated, logprobs_of
from .asked import Asked
from .endpoint import Endpoint
from .logs import RequestRecord
from .messages import from_chat
from .running import RunningRequest
from .schema import ChatBody, ChatRequest, reading_of, settings_of

_BUDGET = "max_tokens"


class ChatCompletions:
    """OpenAI's chat completions."""

    path = "/v1/chat/completions"

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        with self._endpoint.exchange(req, resp, self.path, "messages") as exchange:
            body = exchange.body(ChatRequest)
            prompt = from_chat(body.messages)
            body = body.model_copy(update={"messages": []})  # the body lives as long as the answer
            running = exchange.start(Asked(prompt, body.model, settings_of(body), reading_of(body)))
            if body.stream:
                exchange.stream(running, _chunks(body, running), _failure)
            else:
                resp.media = _answer(body, running, *running.collect())


def _answer(body: ChatBody, running: RunningRequest, text: str, finished: Finished) -> dict[str, Any]:
    """The JSON document of a whole answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        **_head(running.record, body.model, "chat.completion"),
        "choices": [_choice(body, running.logprobs, message=message, finish_reason=_reason(finished))],
        "usage": _usage(finished),
        "ocr": extension(finished, running.record.id, _BUDGET, running.report()),
    }


def _chunks(body: ChatBody, running: RunningRequest) -> Iterator[bytes]:
    """The events of a streamed answer; may raise ``ClientGone``."""
    head = _head(running.record, body.model, "chat.completion.chunk")
    with_usage = bool(body.stream_options and body.stream_options.include_usage)

    def chunk(
        delta: dict[str, Any], finish_reason: str | None = None, tokens: Sequence[TokenLogprob] = (), **more: Any
    ) -> bytes:
        choice = _choice(body if tokens else None, tokens, delta=delta, finish_reason=finish_reason)
        # With include_usage, ``usage`` is null in every chunk but the last.
        return sse.event({**head, "choices": [choice], **({"usage": None} if with_usage else {}), **more})

    yield chunk({"role": "assistant", "content": ""})
    for event in running.events():
        if event is None:
            yield sse.PING
        elif isinstance(event, str):
            yield sse.event({**head, "choices": [], "ocr": {"stage": event}})
        elif isinstance(event, TextDelta):
            yield chunk({"content": event.text}, tokens=event.logprobs)
        elif event.detail == "error":
            raise engine_error(event)
        else:
            yield chunk({}, _reason(event), ocr=extension(event, running.record.id, _BUDGET, running.report()))
            if with_usage:
                yield sse.event({**head, "choices": [], "usage": _usage(event)})
    yield sse.DONE


def _failure(error: ApiError) -> bytes:
    return sse.event(error_body(error.status_code, error.message, code=error.error_code)) + sse.DONE


def _choice(body: ChatBody | None, tokens: Sequence[TokenLogprob], **fields: Any) -> dict[str, Any]:
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
