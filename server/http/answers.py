"""What Chat Completions and Responses say about a finished generation: warnings, truncation, the ``ocr`` field."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from runtime.confidence import TokenLogprob
from runtime.requests import Finished
from server.api_errors import ApiError

from .metrics import decode_rate

log = logging.getLogger(__name__)

_MOST_FLAWS = 20  # most blocks that a warning names
_LEAST = -9999.0  # OpenAI's value for a token of probability 0; JSON has no infinity


def is_truncated(finished: Finished) -> bool:
    """Whether the text was cut off before the model's end. A loop counts as an end: nothing more would come."""
    return finished.detail in ("max_tokens", "context", "deadline", "cancelled")


def extension(finished: Finished, request_id: str, budget_field: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """The ``ocr`` field of an answer: why it ended, its timings, and what to change if the text was cut short.

    budget_field : the name of the token budget in this API. report : boxes and pages, where the request asked for them.
    """
    rate = decode_rate(finished)
    fields: dict[str, Any] = {
        "finish_detail": finished.detail,
        "timings": finished.timings.by_stage(),
        "tokens_per_second": rate,
        **report,
    }
    if finished.confidence is not None:
        fields["confidence"] = asdict(finished.confidence)
    if (warning := _warnings(finished, budget_field, report)) is not None:
        fields["warning"] = warning
        log.warning("request %s: %s", request_id, warning)
    return fields


def logprobs_of(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """OpenAI's description of tokens, the same in Chat Completions and Responses."""
    return [{**_token(one), "top_logprobs": [_token(other) for other in one.best]} for one in tokens]


def _token(one: TokenLogprob) -> dict[str, Any]:
    return {"token": one.text, "logprob": max(one.logprob, _LEAST), "bytes": list(one.data)}


def engine_error(finished: Finished) -> ApiError:
    """The error for a generation that the engine could not carry out; the cause goes to the log only."""
    log.error("the engine failed: %s", finished.error)
    return ApiError(500, "the model failed on this request; the server's log has the details", code="engine_error")


def _warnings(finished: Finished, budget_field: str, report: Mapping[str, Any]) -> str | None:
    """Warnings; of a document whose pages have answers of their own, about each page."""
    pages = [page for page in report.get("pages", ()) if "error" in page or "finish_detail" in page]
    flaws = [f"page {flaw['page']}, {flaw['warning']}" for flaw in report.get("blocks_not_whole", ())][:_MOST_FLAWS]
    if not pages:
        said = _warning(finished.detail, finished.usage.completion_tokens, budget_field)
        return "; ".join([*([said] if said else []), *flaws]) or None
    numbers: dict[str, list[int]] = {}
    for page in pages:
        if "error" in page:
            warning: str | None = page["error"]
        else:
            warning = _warning(page["finish_detail"], page["completion_tokens"], budget_field)
        if warning is not None:
            numbers.setdefault(warning, []).append(page["page"])
    lines = [f"page {', '.join(map(str, which))}: {warning}" for warning, which in numbers.items()]
    if unread := report.get("pages_not_read"):
        lines.append(f"page {', '.join(map(str, unread))}: {_warning(finished.detail, 0, budget_field)}")
    return "; ".join([*lines, *flaws]) or None


def _warning(detail: str, tokens: int, budget_field: str) -> str | None:
    match detail:
        case "max_tokens":
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
