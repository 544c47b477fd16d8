"""dots.ocr's registration, and that of its successor dots.mocr."""

from __future__ import annotations

from types import MappingProxyType

from models.registration import ModelEntry, Registration

from .family import DotsOcr
from .prompts import OF_DOTS_OCR

_FAMILY = "dots-ocr"
_LICENCE = "MIT with an acceptable-use rider and a notice to carry"

# Ids of tokens that the published files name.
PROMPTS = MappingProxyType(
    {
        "<|endoftext|>": (151643,), "<|imgpad|>": (151665,), "<|img|>": (151666,), "<|endofimg|>": (151667,),
        "<|user|>": (151670,), "<|endofuser|>": (151671,), "<|assistant|>": (151672,), "<|endofassistant|>": (151673,),
    }
)  # fmt: skip

DOTS_OCR = Registration(
    _FAMILY,
    (
        ModelEntry(
            "dots-ocr", _FAMILY, "rednote-hilab/dots.ocr", tasks=OF_DOTS_OCR,
            description=f"dots.ocr: layout with boxes and text of whole pages; 3.0 B parameters; {_LICENCE}",
        ),
        ModelEntry(
            "dots-mocr", _FAMILY, "rednote-hilab/dots.mocr",
            description=f"dots.mocr: dots.ocr's newer weights, also web pages, scenes and SVG of charts; {_LICENCE}",
        ),
    ),
    ("DotsOCRForCausalLM",),
    kinds=("dots", "dots.ocr", "dots.mocr", "dots-mocr"),
    prompts=PROMPTS,
    rules=DotsOcr,
    exporter="export.dots_ocr:DotsOcrExport",
    reference="tools.reference_family:DotsReference",
)  # fmt: skip
