"""DeepSeek-OCR-2's registration."""

from __future__ import annotations

from models.deepseek_ocr.registration import PROMPTS
from models.registration import ModelEntry, Registration

from .family import DeepseekOcr2

DEEPSEEK_OCR_2 = Registration(
    "deepseek-ocr-2",
    (
        ModelEntry(
            "deepseek-ocr-2",
            "deepseek-ocr-2",
            "deepseek-ai/DeepSeek-OCR-2",
            description="DeepSeek-OCR-2: documents, tables, figures and grounding; 3.4 B parameters, 0.6 B active",
        ),
    ),
    ("DeepseekOCR2ForCausalLM",),
    kinds=("deepseek-ocr2", "deepseek"),
    prompts=PROMPTS,
    rules=DeepseekOcr2,
    exporter="export.deepseek_ocr2:DeepseekOcr2Export",
    reference="tools.reference_family:Deepseek2Reference",
)
