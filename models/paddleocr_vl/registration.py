"""PaddleOCR-VL's registration."""

from __future__ import annotations

from models.registration import ModelEntry, Registration

from .family import PaddleOcrVl

PADDLEOCR_VL = Registration(
    "paddleocr-vl",
    (
        ModelEntry(
            "paddleocr-vl",
            "paddleocr-vl",
            "PaddlePaddle/PaddleOCR-VL",
            description="PaddleOCR-VL: text, tables, formulas and charts, best in single blocks; 0.9 B parameters",
        ),
    ),
    ("PaddleOCRVLForConditionalGeneration", "PaddleOCRVLForCausalLM"),
    kinds=("paddle-ocr-vl",),
    known_prompts=("Spotting:", "Seal Recognition:"),  # 1.5 and later
    rules=PaddleOcrVl,
    exporter="export.paddleocr_vl:PaddleOcrVlExport",
    reference="tools.reference_family:PaddleReference",
)
