"""Output filters for any family: a chain of filters, formulas between dollars, no blanks around the text.

Every filter works on a stream: its result does not depend on where the text was cut.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .family import OutputFilter

_DELIMITERS = {"\\(": " $ ", "\\)": " $ ", "\\[": " $$ ", "\\]": " $$ "}


class Chain:
    """Filters one after the other."""

    def __init__(self, *filters: OutputFilter) -> None:
        self._filters = filters

    def push(self, text: str) -> str:
        for one in self._filters:
            text = one.push(text)
        return text

    def finish(self) -> str:
        text = ""
        for one in self._filters:
            text = one.push(text) + one.finish()
        return text


@dataclass
class FormulaDelimiters:
    r"""``\(`` and ``\)`` become `` $ ``, ``\[`` and ``\]`` `` $$ ``; LaTeX's line break ``\\`` stays."""

    _held: str = ""  # a backslash at the end

    def push(self, text: str) -> str:
        text = self._held + text
        backslashes = len(text) - len(text.rstrip("\\"))
        keep = len(text) - backslashes % 2
        self._held = text[keep:]
        return re.sub(r"\\.", lambda pair: _DELIMITERS.get(pair[0], pair[0]), text[:keep], flags=re.DOTALL)

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


@dataclass
class Strip:
    """Removes the blanks around the text that other filters leave."""

    _held: str = ""  # blanks at the end
    _started: bool = False

    def push(self, text: str) -> str:
        text = self._held + text
        if not self._started:
            text = text.lstrip()
        keep = len(text.rstrip())
        self._held = text[keep:]
        self._started = self._started or keep > 0
        return text[:keep]

    def finish(self) -> str:
        self._held = ""
        return ""
