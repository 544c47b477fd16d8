"""DeepSeek-OCR's prompts; its answers need no filter."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from models.family import IMAGE_SLOT, TEXT_SLOT

# The prompts that the authors publish.
TASKS: Mapping[str, str] = MappingProxyType(
    {
        "markdown": f"{IMAGE_SLOT}\n<|grounding|>Convert the document to markdown.",
        "ocr": f"{IMAGE_SLOT}\n<|grounding|>OCR this image.",
        "free": f"{IMAGE_SLOT}\nFree OCR.",
        "figure": f"{IMAGE_SLOT}\nParse the figure.",
        "describe": f"{IMAGE_SLOT}\nDescribe this image in detail.",
        "locate": f"{IMAGE_SLOT}\nLocate <|ref|>{TEXT_SLOT}<|/ref|> in the image.",
    }
)
DEFAULT_TASK = "markdown"
