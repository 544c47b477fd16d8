"""The task ``document``: a layout detector finds a page's parts, which are read one by one and put together.

The task travels as a prompt, like any other, so that nothing between a person and the runtime needs to know it. The
runtime recognises this prompt; no model ever sees it.
"""

from __future__ import annotations

from models.family import IMAGE_SLOT

DOCUMENT = "document"
DOCUMENT_PROMPT = f"{IMAGE_SLOT}[document, block by block]"


def is_document(prompt: str) -> bool:
    """Whether a prompt is that of the task."""
    return prompt == DOCUMENT_PROMPT
