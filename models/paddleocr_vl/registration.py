"""PaddleOCR-VL's registration."""

from __future__ import annotations

from models.layout.page_rules import PADDLEX
from models.registration import ModelEntry, Registration

from .family import PaddleOcrVl

_FAMILY = "paddleocr-vl"
_DESCRIPTION = "text, tables, formulas and charts, best in single blocks; 0.9 B parameters"

PADDLEOCR_VL = Registration(
    _FAMILY,
    (
        ModelEntry(
            "paddleocr-vl", _FAMILY, "PaddlePaddle/PaddleOCR-VL", tasks=("ocr", "table", "formula", "chart"),
            layout="pp-doclayout-v2",
            description=f"PaddleOCR-VL: {_DESCRIPTION}",
        ),
        ModelEntry(
            "paddleocr-vl-1.5", _FAMILY, "PaddlePaddle/PaddleOCR-VL-1.5", layout="pp-doclayout-v3",
            description=f"PaddleOCR-VL-1.5: {_DESCRIPTION}, and spots text and seals",
        ),
        ModelEntry(
            "paddleocr-vl-1.6", _FAMILY, "PaddlePaddle/PaddleOCR-VL-1.6", layout="pp-doclayout-v3",
            description=f"PaddleOCR-VL-1.6: the newest weights of 1.5; {_DESCRIPTION}, and spots text and seals",
        ),
    ),
    ("PaddleOCRVLForConditionalGeneration", "PaddleOCRVLForCausalLM"),
    kinds=("paddle-ocr-vl",),
    page=PADDLEX,
    elements={"text": "ocr", "table": "table", "formula": "formula", "chart": "chart", "seal": "seal"},
    known_prompts=("Spotting:", "Seal Recognition:"),  # an entry of the first revision may be given a later source
    rules=PaddleOcrVl,
    exporter="export.paddleocr_vl:PaddleOcrVlExport",
    reference="tools.reference_family:PaddleReference",
)  # fmt: skip
