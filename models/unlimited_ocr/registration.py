"""Unlimited-OCR's registration."""

from __future__ import annotations

from models.registration import ModelEntry, Registration

from .family import UnlimitedOcr

UNLIMITED_OCR = Registration(
    "unlimited-ocr",
    (
        ModelEntry(
            "unlimited-ocr",
            "unlimited-ocr",
            "baidu/Unlimited-OCR",
            description="Unlimited-OCR: documents of many pages and long answers; 3.3 B parameters, 0.6 B active",
        ),
    ),
    ("UnlimitedOCRForCausalLM",),
    rules=UnlimitedOcr,
    exporter="export.unlimited_ocr:UnlimitedOcrExport",
    reference="tools.reference_family:UnlimitedReference",
)
