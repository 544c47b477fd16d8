"""Drops blocks that clients put around the words that a person typed, by a table.

Open WebUI adds a list of the attached files, and instructions with the results of its own search. A model that reads
pictures was trained on neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Wrapper:
    """A block from where ``begin`` matches up to and with ``end``; a block without its end is text."""

    begin: re.Pattern[str]
    end: str


def tag(name: str) -> Wrapper:
    """``<name ...>`` to ``</name>``."""
    return Wrapper(re.compile(rf"<{re.escape(name)}(?=[\s>])"), f"</{name}>")


# The second is Open WebUI's template for search results; people change its words, so its parts are listed, too.
WRAPPERS: tuple[Wrapper, ...] = (
    tag("attached_files"),
    Wrapper(
        re.compile(r"^### Task:\s+Respond to the user query using the provided context", re.MULTILINE), "</context>"
    ),
    tag("context"),
    tag("source"),
)
_QUERY = re.compile(r"</?user_query>")  # an older template has the person's own words between these


def unwrapped(text: str, tags: Iterable[str] = ()) -> str:
    """The text without the blocks of the table and of ``tags``, stripped."""
    for wrapper in (*WRAPPERS, *map(tag, tags)):
        text = _without(text, wrapper)
    return _QUERY.sub("", text).strip()


def _without(text: str, wrapper: Wrapper) -> str:
    """Remove blocks in one pass, in linear time: a client's text may hold very many beginnings."""
    kept: list[str] = []
    at = 0
    while (begin := wrapper.begin.search(text, at)) and (end := text.find(wrapper.end, begin.end())) >= 0:
        kept.append(text[at : begin.start()])
        at = end + len(wrapper.end)
    return "".join(kept) + text[at:]
