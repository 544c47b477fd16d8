"""How the parts of a page are read and put together: each vendor's rules, every rule a switch.

Families name theirs in their registration; ``[models.entries.<id>.page]`` in config.toml changes single rules. The
labels are those of ``labels.LABELS``. Sources: PaddleX 3.7 (``inference/pipelines/paddleocr_vl``) and glmocr 0.1.5.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from models.model_errors import InvalidInput
from models.repetition import LEAST_TABLE, LEAST_TEXT, without_repetition

from .labels import LABELS
from .rules import GLM_OCR, PADDLEOCR_VL_15, DetectionRules

# What a part is read as; a family's registration names the task.
ELEMENTS = ("text", "table", "formula", "chart", "seal")

_TEXT = (
    "abstract", "algorithm", "aside_text", "content", "doc_title", "figure_title", "footer", "footnote",
    "formula_number", "header", "number", "paragraph_title", "reference_content", "text", "vertical_text",
    "vision_footnote",
)  # fmt: skip
_FORMULAS = ("display_formula", "inline_formula")
_BESIDE_THE_TEXT = ("aside_text", "footer", "footer_image", "footnote", "header", "header_image", "number")
_ELEMENT_OF: Mapping[str, str] = MappingProxyType(
    {**dict.fromkeys(_TEXT, "text"), **dict.fromkeys(_FORMULAS, "formula"), "table": "table"}
)
# What a picture is read as, if at all.
_ELEMENT_OF_PICTURE: Mapping[str, str] = MappingProxyType({"chart": "chart", "seal": "seal", "image": "text"})

_BRACKETS = (("\\(", "\\)"), ("\\[", "\\]"))


@dataclass(frozen=True)
class PageRules:
    """The rules of reading pages by their parts. All but the settings may be changed one by one."""

    # Which parts.
    threshold: float | None = None  # least score of a box; None: the vendor's thresholds by label
    dropped: tuple[str, ...] = ("reference",)  # labels that are dropped
    hidden: tuple[str, ...] = _BESIDE_THE_TEXT  # labels that are blocks, but not in the page's text
    pictures: tuple[str, ...] = ("chart", "footer_image", "header_image", "image", "seal")  # not read
    read_also: tuple[str, ...] = ()  # labels of pictures to read all the same: chart, seal, image
    plain_text: tuple[str, ...] = ()  # labels that are read as text, whatever their kind

    # How parts are cut out.
    drop_overlapping: bool = True  # of two parts that cover each other, drop the smaller
    margin: int = 0  # margin around a part, pixels
    ink_only: bool = True  # cut formulas out without the white margin
    join_text: bool = True  # read text that continues beside a picture or in the next column together

    # How the parts' texts are put together.
    title_levels: bool = True  # levels by the titles' numbers; else 2 below the document's
    abstract_heading: bool = True  # the word Abstract in front of an abstract becomes a heading
    double_line_ends: bool = True  # each line of a text is a paragraph
    formula_fence: str = "$$ {} $$"
    formula_numbers: Literal["hide", "tag"] = "hide"
    tidy_lists: bool = False  # bullets become Markdown's
    join_hyphens: bool = False  # join a word that is split between two parts

    # What is removed from an answer before its family presents it.
    cut_repetition: bool = True  # remove endless repetition, by the lengths below
    lone_dollars: bool = False  # dollars stay beside formulas in brackets

    # For pages without parts.
    whole_when_empty: bool = True  # read a page that is not blank as one text

    # Rules for the detector's boxes; None: the detector's own.
    detection: DetectionRules | None = None

    # Default settings of the request for one part.
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def element(self, label: str) -> str | None:
        """What a part is read as; None: the part is not read."""
        if label in self.plain_text:
            return "text"
        if label in self.pictures:
            return _ELEMENT_OF_PICTURE.get(label) if label in self.read_also else None
        return _ELEMENT_OF.get(label, "text")

    @property
    def boxes(self) -> DetectionRules | None:
        """The rules for the detector's boxes; None: the detector's own."""
        if self.threshold is None:
            return self.detection
        rules = self.detection or PADDLEOCR_VL_15
        return rules.model_copy(update={"threshold": self.threshold, "thresholds": {}})

    def cleaned(self, text: str, element: str | None) -> str:
        """The model's answer without the text that its vendor removes."""
        if self.cut_repetition:
            text = without_repetition(text, LEAST_TABLE if element == "table" else LEAST_TEXT)
        if not self.lone_dollars and any(start in text and end in text for start, end in _BRACKETS):
            text = text.replace("$", "")
        return text

    def shows_picture(self, label: str) -> bool:
        """Whether a part is a picture in the text. A chart that is read becomes a table instead."""
        return label in self.pictures and not (label == "chart" and label in self.read_also)

    def change(self, values: Mapping[str, Any]) -> Self:
        """A copy with some rules changed.

        Raises
        ------
        InvalidInput
            naming the rule, what was found and what was expected.
        """
        for name, value in values.items():
            if name not in SWITCHES:
                raise InvalidInput(f"there is no rule {name!r:.60}; there are {', '.join(sorted(SWITCHES))}")
            if (expected := _expected(name, value)) is not None:
                raise InvalidInput(f"{name} is {value!r:.80}; it must be {expected}")
        changes: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in values.items()}
        return replace(self, **changes)


SWITCHES = frozenset(one.name for one in fields(PageRules)) - {"detection", "settings"}
_TYPES = get_type_hints(PageRules)


def _expected(name: str, value: Any) -> str | None:
    """The values that a rule takes; None where ``value`` is one."""
    kind = _TYPES[name]
    if get_origin(kind) is tuple:
        choices = _ELEMENT_OF_PICTURE if name == "read_also" else LABELS
        fits = isinstance(value, (list, tuple)) and all(one in choices for one in value)
        return None if fits else f"a list of some of {', '.join(choices)}"
    if get_origin(kind) is Literal:
        return None if value in get_args(kind) else " or ".join(get_args(kind))
    if name == "threshold":
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
        return None if fits else "a number from 0 to 1"
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1000
        return None if fits else "a number of pixels, 0 to 1000"
    fits = isinstance(value, str) and value.count("{}") == 1
    return None if fits else "a text with {} in it, where the formula goes"


PADDLEX = PageRules(
    settings=MappingProxyType({"max_new_tokens": 4096, "min_pixels": 112_896, "max_pixels": 1_003_520}),
)

GLM_SDK = PageRules(
    dropped=("reference", *_BESIDE_THE_TEXT),
    hidden=(),
    pictures=("chart", "image"),
    plain_text=("seal",),
    drop_overlapping=False,
    ink_only=False,
    join_text=False,
    cut_repetition=False,
    lone_dollars=True,
    title_levels=False,
    abstract_heading=False,
    formula_fence="$$\n{}\n$$",
    formula_numbers="tag",
    tidy_lists=True,
    join_hyphens=True,
    detection=GLM_OCR,
    settings=MappingProxyType({"max_new_tokens": 8192}),
)

# For other models: PaddleX's rules without those for its own models.
PLAIN = PageRules(cut_repetition=False, lone_dollars=True, settings=MappingProxyType({"max_new_tokens": 4096}))

RULES: Mapping[str, PageRules] = types.MappingProxyType({"paddlex": PADDLEX, "glm": GLM_SDK, "plain": PLAIN})
