"""Totals of several answers: pages of a document, or parts of a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .confidence import Confidence
from .requests import FinishDetail, Finished, Timings, Usage

# How the whole ended when its parts ended in different ways: the first of these that occurs.
_WORST_FIRST: tuple[FinishDetail, ...] = (
    "cancelled", "deadline", "context", "max_tokens", "loop", "stop_string", "eos",
)  # fmt: skip


def worst(details: Iterable[FinishDetail]) -> FinishDetail:
    """The detail of a whole, from the details of its parts."""
    found = set(details)
    return next(one for one in _WORST_FIRST if one in found)


def usage_of(ends: Sequence[Finished]) -> Usage:
    """The sum of all usages."""
    return Usage(
        sum(end.usage.prompt_tokens for end in ends),
        sum(end.usage.completion_tokens for end in ends),
        sum(end.usage.image_tokens for end in ends),
    )


def timings_of(ends: Sequence[Finished]) -> Timings:
    """Sums over all stages; the time to the first token is the first part's."""
    return Timings(
        queued=ends[0].timings.queued if ends else 0.0,
        prepare=sum(end.timings.prepare for end in ends),
        vision=sum(end.timings.vision for end in ends),
        prefill=sum(end.timings.prefill for end in ends),
        decode=sum(end.timings.decode for end in ends),
        first_token=ends[0].timings.first_token if ends else 0.0,
        layout=sum(end.timings.layout for end in ends),
        blocks=sum(end.timings.blocks for end in ends),
    )


def confidence_of(ends: Sequence[Finished]) -> Confidence | None:
    """Mean over all parts' tokens, and the lowest probability of all; an empty answer counts as one token."""
    told = [(end.confidence, max(1, end.usage.completion_tokens)) for end in ends if end.confidence is not None]
    if not told:
        return None
    mean = sum(one.mean * tokens for one, tokens in told) / sum(tokens for _, tokens in told)
    return Confidence(mean, min(one.lowest for one, _ in told))
