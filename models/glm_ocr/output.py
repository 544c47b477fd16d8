"""GLM-OCR's prompts, and the clean-up of its answers by the authors' own package (glmocr 0.1.5)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from models.family import IMAGE_SLOT, TEXT_SLOT, OutputFilter
from models.filters import Chain, Strip
from models.model_errors import InvalidInput
from models.repetition import RepeatCut

_EXTRACT = "请按下列JSON格式输出图中信息:"  # Give the information in the picture in the following JSON format
TASKS: Mapping[str, str] = MappingProxyType(
    {
        "text": f"{IMAGE_SLOT}Text Recognition:",
        "table": f"{IMAGE_SLOT}Table Recognition:",
        "formula": f"{IMAGE_SLOT}Formula Recognition:",
        "extract": f"{IMAGE_SLOT}{_EXTRACT}\n{TEXT_SLOT}",
    }
)
DEFAULT_TASK = "text"
KNOWN_PROMPTS = ("Figure Recognition:",)  # listed by Ollama

# The loops that users report repeat a few words or lines (zai-org/GLM-OCR 220, ollama 16892), and the guard ends them.
# Neither an n-gram rule nor the package's penalty of 1.1 is taken: both write wrong digits into tables and identifiers.
DEFAULTS: Mapping[str, Any] = MappingProxyType({"no_repeat_ngram_size": 0})

_LEAST_REPEATED = 2048  # characters from which on the package looks for repetition
_LONGEST_RUN = 3  # length of runs of leaders
_INLINE = re.compile(r"(?<![\\$])\$(?!\$)[ \t]+([^$\n]*?[\\^_{}=<>+][^$\n]*?)[ \t]+\$(?![\d$])")
_FENCE = re.compile(r"[ \t]*```[ \t]*\w*[ \t]*\n?")
_MAY_BE_FENCE = re.compile(r"[ \t]*(?:`{0,2}|```[ \t]*\w*[ \t]*)\Z")
_DELIMITERS = (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$"))


def check_template(prompt: str) -> None:
    """Refuse a prompt for fields without a template.

    Raises
    ------
    InvalidInput
        when the prompt is that of the task ``extract``, and no JSON comes with it that has fields.
    """
    words = prompt.replace(IMAGE_SLOT, "").strip()
    if not words.startswith(_EXTRACT):
        return
    given = words.removeprefix(_EXTRACT).strip()
    try:
        found = json.loads(given)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, (dict, list)) or not found:
        raise InvalidInput(
            f"what is to be extracted is {given[:80]!r}; it must be JSON: an object with the names of the fields and "
            'empty strings for their values, such as {"date": "", "total": ""}'
        )


def output_filter(prompt: str) -> OutputFilter:
    """The filter for the answer to a prompt."""
    words = prompt.replace(IMAGE_SLOT, "").strip()
    common = (RepeatCut(_LEAST_REPEATED, _LEAST_REPEATED), ShortLeaders())
    if words.startswith("Formula Recognition"):
        return Chain(*common, Unfenced(), BareFormula(), Strip())
    if words.startswith(("Table Recognition", _EXTRACT)):
        return Chain(*common, Unfenced(), Strip())
    return Chain(*common, ByLine(_tight_dollars), Strip())


@dataclass
class ShortLeaders:
    """Cuts runs of the leaders ``.``, ``·`` and ``_`` to three."""

    _last: str = ""
    _run: int = 0

    def push(self, text: str) -> str:
        kept = []
        for sign in text:
            self._run = self._run + 1 if sign == self._last else 1
            self._last = sign
            if sign not in ".·_" or self._run <= _LONGEST_RUN:
                kept.append(sign)
        return "".join(kept)

    def finish(self) -> str:
        return ""


@dataclass
class ByLine:
    """Edits each line that has a dollar, from the line's first dollar on."""

    edit: Callable[[str], str]
    _held: str = ""

    def push(self, text: str) -> str:
        *lines, rest = (self._held + text).split("\n")
        written = [self.edit(line) + "\n" for line in lines]
        certain = rest.find("$") if "$" in rest else len(rest)
        certain -= rest.endswith("\\", 0, certain)  # a backslash makes the next dollar one of money
        self._held = rest[certain:]
        return "".join([*written, rest[:certain]])

    def finish(self) -> str:
        held, self._held = self._held, ""
        return self.edit(held)


def _tight_dollars(line: str) -> str:
    """``$ x $`` as ``$x$``, where mathematics stands between the dollars and no sum of money."""
    return _INLINE.sub(r"$\1$", line)


@dataclass
class Unfenced:
    """Removes the first and last line of a code block around a formula, a table or JSON."""

    _held: str = ""  # the beginning of a line
    _begun: bool = False  # a part of the line has been given out

    def push(self, text: str) -> str:
        *lines, rest = (self._held + text).split("\n")
        written = [self._line(line + "\n") for line in lines]
        self._held = ""
        if self._begun or not _MAY_BE_FENCE.match(rest):
            written.append(rest)
            self._begun = True
        else:
            self._held = rest
        return "".join(written)

    def finish(self) -> str:
        return self._line(self._held)

    def _line(self, line: str) -> str:
        begun, self._begun = self._begun, False
        return "" if not begun and _FENCE.fullmatch(line) else line


@dataclass
class BareFormula:
    r"""LaTeX without the delimiters that some answers put around it: ``$$``, ``\[ \]``, ``\( \)``."""

    _held: list[str] = field(default_factory=list)

    def push(self, text: str) -> str:
        self._held.append(text)  # only the answer's end says whether its beginning is a delimiter
        return ""

    def finish(self) -> str:
        return undelimited("".join(self._held))


def undelimited(text: str) -> str:
    """One formula without its delimiters; several formulas, or formulas with words between, stay unchanged."""
    text = text.strip()
    for begin, end in _DELIMITERS:
        inner = text[len(begin) : -len(end)]
        whole = text == f"{begin}{inner}{end}"
        if whole and begin not in inner and end not in inner:
            return inner.strip()
    return text
