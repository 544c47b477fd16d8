"""DeepSeek-OCR's registration, with the built-in miniature of the same architecture."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from models.registration import ModelEntry, Registration

from .family import DeepseekOcr

_TINY_OCR = Path(__file__).parents[1] / "tiny_ocr"  # packaged beside this folder

# Ids by the published tokenizer.json, which DeepSeek-OCR-2 shares.
PROMPTS = MappingProxyType(
    {
        "\nFree OCR.": (201, 21431, 126041, 16),
        "\n<|grounding|>Convert the document to markdown.": (201, 128820, 21842, 270, 4940, 304, 2121, 7919, 16),
        "\n<|grounding|>OCR this image.": (201, 128820, 119316, 566, 4609, 16),
    }
)

DEEPSEEK_OCR = Registration(
    "deepseek-ocr",
    (
        ModelEntry(
            "deepseek-ocr",
            "deepseek-ocr",
            "deepseek-ai/DeepSeek-OCR",
            description="DeepSeek-OCR: documents, tables, figures and grounding; 3 B parameters, 0.6 B active",
        ),
        ModelEntry(
            "tiny-ocr",
            "deepseek-ocr",
            str(_TINY_OCR),
            # A config.toml that deepseek-ocr.rs wrote sets 1024 and 640 for every model; an entry's defaults win.
            # A token is a letter here: 20 tokens come again with every block that begins where the one above does.
            defaults=MappingProxyType({"base_size": 256, "image_size": 224, "no_repeat_ngram_size": 40}),
            tasks=("free", "markdown", "ocr", "locate"),  # the prompts that the model was trained on
            description="built-in miniature: a demonstration and a test instrument, not a product for documents",
        ),
    ),
    ("DeepseekOCRForCausalLM",),
    kinds=("deepseek",),
    prompts=PROMPTS,
    rules=DeepseekOcr,
    exporter="export.deepseek_ocr:DeepseekOcrExport",
    reference="tools.reference_family:DeepseekReference",
)
