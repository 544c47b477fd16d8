"""One request between a client's body and the runtime: checked, and in this server's terms.

Every endpoint turns its own form into this one; from here on all requests go the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .messages import Prompt
from .schema import ReadingOptions


@dataclass(frozen=True)
class Asked:
    """A checked request."""

    prompt: Prompt  # images or document, and the client's words
    model: str  # the model's id
    settings: Mapping[str, Any]  # inference settings that the request sets, by field name
    reading: ReadingOptions
    floor: Mapping[str, Any] = field(default_factory=dict)  # the endpoint's own defaults
