"""The task ``document``: a page is taken apart by a layout detector, its parts are read one by one, and put together.

The task travels like any other, as a prompt, so that everything between a person and the runtime passes it on as it
does the rest. The runtime tells this one prompt apart; no model ever sees it.
"""

from __future__ import annotations

from models.family import IMAGE_SLOT

DOCUMENT = "document"
DOCUMENT_PROMPT = f"{IMAGE_SLOT}[document, block by block]"


def is_document(prompt: str) -> bool:
    """Whether a prompt is that of the task."""
    return prompt == DOCUMENT_PROMPT
