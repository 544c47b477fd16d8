"""PaddleOCR-VL's prompts, and the filters of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from models.family import IMAGE_SLOT, OutputFilter
from models.filters import Chain, FormulaDelimiters, Strip
from models.otsl import OtslTables
from models.repetition import RepeatCut

SPOTTING = f"{IMAGE_SLOT}Spotting:"
TASKS: Mapping[str, str] = MappingProxyType(
    {
        "ocr": f"{IMAGE_SLOT}OCR:",
        "table": f"{IMAGE_SLOT}Table Recognition:",
        "formula": f"{IMAGE_SLOT}Formula Recognition:",
        "chart": f"{IMAGE_SLOT}Chart Recognition:",
        "spotting": SPOTTING,  # spotting and seal: since 1.5
        "seal": f"{IMAGE_SLOT}Seal Recognition:",
    }
)
DEFAULT_TASK = "ocr"
# Empty cells and rows of empty cells repeat by nature: n-gram blocking writes wrong cells, and the loop guard takes a
# table of 20 empty columns for a loop in its ninth row. ``RepeatCut`` cuts endless repetition from the answer, and
# max_new_tokens bounds the time of such an answer.
DEFAULTS: Mapping[str, Any] = MappingProxyType({"no_repeat_ngram_size": 0, "stop_on_loop": False})


def output_filter() -> OutputFilter:
    """The filter for an answer, whatever the prompt was."""
    return Chain(RepeatCut(), OtslTables(), FormulaDelimiters(), Strip())
