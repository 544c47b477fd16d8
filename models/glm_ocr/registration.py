"""GLM-OCR's registration."""

from __future__ import annotations

from types import MappingProxyType

from models.layout.page_rules import GLM_SDK
from models.registration import ModelEntry, Registration

from .family import GlmOcr
from .output import KNOWN_PROMPTS

# Ids by the published tokenizer.json.
_PROMPTS = MappingProxyType(
    {
        "\n": (10,),
        "Text Recognition:": (3649, 7404, 49600, 58),
        "Formula Recognition:": (4000, 6062, 7404, 49600, 58),
        "Table Recognition:": (5964, 7404, 49600, 58),
        "请按下列JSON格式输出图中信息:": (2517, 2360, 14252, 11786, 12156, 8855, 38107, 2265, 58),
        "Hello, world!": (22519, 44, 2901, 33),
        "123": (49, 50, 51),
    }
)

GLM_OCR = Registration(
    "glm-ocr",
    (
        ModelEntry(
            "glm-ocr", "glm-ocr", "zai-org/GLM-OCR", layout="pp-doclayout-v3",
            description="GLM-OCR: text, tables, formulas, best in single blocks, and fields as JSON; 0.9 B parameters",
        ),
    ),
    ("GlmOcrForConditionalGeneration",),
    prompts=_PROMPTS,
    known_prompts=KNOWN_PROMPTS,
    page=GLM_SDK,
    extraction="extract",
    rules=GlmOcr,
    exporter="export.glm_ocr:GlmOcrExport",
    reference="tools.reference_family:GlmReference",
)  # fmt: skip
