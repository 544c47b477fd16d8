"""What both APIs say about a finished generation: warnings, truncation, the ``ocr`` extension field."""

from __future__ import annotations

import logging
from typing import Any

from runtime.requests import Finished

from .errors import ApiError
from .metrics import decode_rate

log = logging.getLogger(__name__)


def is_truncated(finished: Finished) -> bool:
    """Whether the text ends before the model wanted it to. A loop is an end: there was nothing more to come."""
    return finished.detail in ("max_tokens", "context", "deadline", "cancelled")


def extension(finished: Finished, request_id: str, budget_field: str) -> dict[str, Any]:
    """The ``ocr`` field of an answer: why it ended, where the time went, what to change if it was cut short.

    ``budget_field`` is the name of the token budget in this API.
    """
    timings = finished.timings
    rate = decode_rate(finished)
    fields: dict[str, Any] = {
        "finish_detail": finished.detail,
        "timings": {
            "queued": timings.queued,
            "prepare": timings.prepare,
            "vision": timings.vision,
            "prefill": timings.prefill,
            "decode": timings.decode,
            "first_token": timings.first_token,
        },
        "tokens_per_second": rate,
    }
    if (warning := _warning(finished, budget_field)) is not None:
        fields["warning"] = warning
        log.warning("request %s: %s", request_id, warning)
    return fields


def engine_error(finished: Finished) -> ApiError:
    """The error for a generation that the engine could not carry out; the cause goes to the log only."""
    log.error("the engine failed: %s", finished.error)
    return ApiError(500, "the model failed on this request; the server's log has the details", code="engine_error")


def _warning(finished: Finished, budget_field: str) -> str | None:
    match finished.detail:
        case "max_tokens":
            tokens = finished.usage.completion_tokens
            return f"the answer was cut off after {tokens} tokens; raise {budget_field} (or --max-new-tokens)"
        case "context":
            return "the answer was cut off at the model's length limit; send fewer or smaller images"
        case "deadline":
            return "the answer was cut off at the deadline; raise deadline_s (or --deadline)"
        case "cancelled":
            return "the answer was cut off because the server is shutting down"
        case "loop":
            return "the answer was ended because its tail repeated itself; stop_on_loop: false lets it go on"
    return None
