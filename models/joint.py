"""An answer to several pages, which the model separates by ``PAGE_BREAK``.

Called by the server and the command line for a family's joint tasks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from .family import IMAGE_SLOT
from .grounding import PAGE_BREAK


@dataclass(frozen=True)
class PagePart:
    """The part of an answer about one page."""

    start: int  # begin of its text in the whole answer, characters
    end: int
    tokens: int  # tokens that begin in the page or in the mark behind the page


def joint_prompt(prompt: str, pages: int) -> str:
    """A task's prompt with a slot for each page in front of its words."""
    return "\n".join([IMAGE_SLOT] * pages) + prompt.replace(IMAGE_SLOT, "")


def page_parts(pieces: Sequence[tuple[str, int]], pages: int) -> list[PagePart]:
    """The pages that an answer reaches, at most ``pages``: further marks are text of the last page.

    pieces : of the answer, each with its number of tokens.
    """
    text = "".join(piece for piece, _ in pieces)
    starts, ends = [0], []
    while len(starts) < pages and (mark := text.find(PAGE_BREAK, starts[-1])) >= 0:
        ends.append(mark)
        starts.append(mark + len(PAGE_BREAK))
    tokens, at = [0] * len(starts), 0
    for piece, count in pieces:
        tokens[bisect_right(starts, at) - 1] += count
        at += len(piece)
    return [PagePart(*part) for part in zip(starts, [*ends, len(text)], tokens, strict=True)]


def not_reached(detail: str) -> str:
    """The message for a page that the answer does not reach; ``detail``: how the answer ended."""
    return f"the answer to all pages together ended before this one ({detail})"
