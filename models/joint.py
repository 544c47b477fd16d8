"""An answer to several pages at once, and the pages in it, which the model parts by ``PAGE_BREAK``.

Called by the server and the command line for tasks that a family says are joint.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from .family import IMAGE_SLOT
from .grounding import PAGE_BREAK


@dataclass(frozen=True)
class PagePart:
    """What an answer says of one page."""

    start: int  # of its text in the whole answer, characters
    end: int
    tokens: int  # of the answer that began in the page or in the mark behind the page


def joint_prompt(prompt: str, pages: int) -> str:
    """A task's prompt with a slot for each page in front of its words."""
    return "\n".join([IMAGE_SLOT] * pages) + prompt.replace(IMAGE_SLOT, "")


def page_parts(pieces: Sequence[tuple[str, int]], pages: int) -> list[PagePart]:
    """The pages that an answer reaches, ``pages`` at the most: a mark behind the last one is text of that.

    pieces : of the answer, each with the number of its tokens.
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
    """What is said of a page that the answer has no text for; ``detail``: how the answer ended."""
    return f"the answer to all pages together ended before this one ({detail})"
