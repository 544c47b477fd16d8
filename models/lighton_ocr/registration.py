"""LightOnOCR's registration: LightOnOCR-2-1B, and 3-1B of the same architecture."""

from __future__ import annotations

from types import MappingProxyType

from models.registration import ModelEntry, Registration

from .family import LightOnOcr

_FAMILY = "lighton-ocr"

# Ids in Qwen2's vocabulary, which the published checkpoints use.
PROMPTS = MappingProxyType(
    {
        "<|im_start|>system<|im_end|>\n": (151644, 8948, 151645, 198), "<|im_start|>user\n": (151644, 872, 198),
        "<|image_pad|>": (151655,), "<|im_start|>assistant\n": (151644, 77091, 198),
    }
)  # fmt: skip

LIGHTON_OCR = Registration(
    _FAMILY,
    (
        ModelEntry(
            "lighton-ocr", _FAMILY, "lightonai/LightOnOCR-2-1B", tasks=("markdown",),
            description="LightOnOCR-2: whole pages as Markdown without an instruction; 1.0 B parameters",
        ),
        ModelEntry(
            "lighton-ocr-3", _FAMILY, "lightonai/LightOnOCR-3-1B",
            description="LightOnOCR-3-1B: as LightOnOCR-2, and blocks with their boxes; 1.0 B parameters",
        ),
    ),
    ("LightOnOCRForConditionalGeneration", "LightOnOcrForConditionalGeneration"),
    kinds=("lightonocr", "lighton"),
    prompts=PROMPTS,
    known_prompts=(),  # trained without instructions
    rules=LightOnOcr,
    exporter="export.lighton_ocr:LightOnOcrExport",
    reference="tools.reference_family:LightOnReference",
)  # fmt: skip
