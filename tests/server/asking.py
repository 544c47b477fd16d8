"""What tests of the API look for in answers, and a model that breaks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from runtime.requests import Request
from tests.server.fake import Step


def events(result: Any) -> list[dict[str, Any]]:
    """The JSON documents of a stream of server-sent events."""
    blocks = [block for block in result.text.split("\n\n") if block and not block.startswith(":")]
    lines = [next(line for line in block.split("\n") if line.startswith("data: ")) for block in blocks]
    return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]


def ending(reason: str, detail: str) -> Any:
    def script(request: Request) -> Iterable[Step]:
        return ["partial", (reason, detail)]  # type: ignore[list-item]

    return script


def broken(request: Request) -> Iterable[Step]:
    yield "some text"
    raise RuntimeError("a secret of the engine")
