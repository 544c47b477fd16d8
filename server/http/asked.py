"""One request as it stands between the bodies that clients send and the runtime: checked, and in this server's terms.

Every endpoint makes one of its own form; from there on a request has one way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .messages import Prompt
from .schema import ReadingOptions


@dataclass(frozen=True)
class Asked:
    """What one request asks for."""

    prompt: Prompt  # the images or the document, and the client's words
    model: str  # its id
    settings: Mapping[str, Any]  # inference settings that the request sets, by field name
    reading: ReadingOptions
    floor: Mapping[str, Any] = field(default_factory=dict)  # the endpoint's own settings, where nobody sets any
