"""Log lines as text or JSON, and the one line that each generation request leaves.

Neither the prompt nor the recognised text is ever part of it: they are the user's document.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any

from runtime.requests import Finished

from .metrics import Metrics, decode_rate

log = logging.getLogger("server.request")


class JsonFormatter(logging.Formatter):
    """One JSON object a line; the ``fields`` of a record become keys."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        entry.update(fields if isinstance(fields, dict) else {"message": record.getMessage()})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure(form: str) -> None:
    """Send the program's log to standard error in the given form."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)  # Pillow's about odd files: as log lines too
    # Waiting for a thread and clients that hang up are normal here; the request's own line says so.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    logging.getLogger("waitress").setLevel(logging.WARNING)


@dataclass
class RequestRecord:
    """What is known of one generation request; ``finish`` writes it down once."""

    id: str
    endpoint: str
    metrics: Metrics
    model: str = ""  # the client's word for it, once it is known to be a model
    stream: bool = False
    image_sizes: list[tuple[int, int]] = field(default_factory=list)  # width, height
    pages: int | None = None  # of a document, those that were asked for
    started: float = field(default_factory=time.monotonic)
    created: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970, for the answer
    event_numbers: Iterator[int] = field(default_factory=count)  # of the events that are streamed
    result: Finished | None = None
    done: bool = False

    def finish(self, outcome: str) -> None:
        """Log and count the request. Only the first call does anything."""
        if self.done:
            return
        self.done = True
        self.metrics.finished(self.model, outcome, self.result)
        fields = self._fields(outcome)
        line = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
        log.info("%s", line, extra={"fields": fields})

    def _fields(self, outcome: str) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "id": self.id,
            "endpoint": self.endpoint,
            "model": self.model or None,
            "stream": self.stream,
            "outcome": outcome,
            "images": ",".join(f"{width}x{height}" for width, height in self.image_sizes) or None,
            "pages": self.pages,
            "seconds": round(time.monotonic() - self.started, 3),
        }
        if self.result is not None:
            usage, timings = self.result.usage, self.result.timings
            rate = decode_rate(self.result)
            fields |= {
                "finish": self.result.detail,
                "prompt_tokens": usage.prompt_tokens,
                "image_tokens": usage.image_tokens,
                "completion_tokens": usage.completion_tokens,
                **{
                    stage: round(getattr(timings, stage), 3)
                    for stage in ("queued", "prepare", "vision", "prefill", "decode", "first_token")
                },
                "tokens_per_second": round(rate, 1) if rate is not None else None,
            }
        return fields
