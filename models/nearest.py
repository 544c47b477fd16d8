"""The nearest known word, for messages about an unknown word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

# Common words for names that are spelt quite differently here.
_MEANT: Mapping[str, str] = {
    "gpu": "cuda", "nvidia": "cuda", "mps": "coreml", "apple": "coreml",
    "half": "f16", "float": "f32", "int8": "q8", "8bit": "q8", "int4": "q4", "4bit": "q4",
}  # fmt: skip


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where one of the known words is near, else nothing."""
    words = list(known)
    meant = _MEANT.get(word.lower())
    near = [meant] if meant in words else difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
