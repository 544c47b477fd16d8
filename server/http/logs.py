"""Log lines as text or JSON: one for each generation request and each refused request; at level debug, for all.

Prompts and recognised text are the user's, and are never logged.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any

import falcon

from runtime.requests import Finished

from .metrics import Metrics, decode_rate

log = logging.getLogger("server.request")

MAX_NAME = 100  # most characters of a client's text in a line
_PLAIN = re.compile(r"[\w.,:/+@()\[\]-]+")
OWN_LOGGERS = ("server", "runtime", "models")  # packages that --log-level is for: others log users' files at debug


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


def configure(form: str, level: str = "info") -> None:
    """Send the program's log to standard error in the given form, from the given level on."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())
    logging.captureWarnings(True)  # Pillow's warnings about odd files, as log lines
    # Waiting for a thread, and clients that hang up, are normal, and in the request's own line.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    logging.getLogger("waitress").setLevel(logging.WARNING)


@dataclass
class RequestRecord:
    """Facts about one generation request; ``finish`` logs them once."""

    id: str
    endpoint: str
    metrics: Metrics
    model: str = ""  # the model's id, once it is known to be one
    asked: str = ""  # the client's text for the model, even if unknown
    address: str = ""  # the client's
    client: str = ""  # whose share of the model the request takes: the key's or, without keys, the address's
    stream: bool = False
    image_sizes: list[tuple[int, int]] = field(default_factory=list)  # width, height
    pages: int | None = None  # number of pages asked for of a document
    pages_done: int = 0
    started: float = field(default_factory=time.monotonic)
    created: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970, for the answer
    event_numbers: Iterator[int] = field(default_factory=count)  # numbers of the events that are streamed
    result: Finished | None = None
    done: bool = False

    def finish(self, outcome: str, *, status: int | None = None, reason: str | None = None) -> None:
        """Log and count the request; only the first call does anything. ``status``, ``reason``: of a refusal."""
        if self.done:
            return
        self.done = True
        self.metrics.finished(self.model, outcome, self.result)
        refusal = {} if reason is None else {"status": status, "reason": reason, "address": self.address}
        _write(logging.INFO, self._fields(outcome) | refusal)

    def _fields(self, outcome: str) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "id": self.id,
            "endpoint": self.endpoint,
            "model": self.model or self.asked[:MAX_NAME] or None,
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


class RequestLog:
    """Falcon middleware: a line for each request without one, at info for a refused request, else at debug."""

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: object, succeeded: bool) -> None:
        """Write the line. ``error_answers`` leaves the reason of a refusal in the request's context."""
        if req.context.get("recorded"):
            return
        reason = req.context.get("reason")
        fields = {
            "method": req.method,
            "path": req.path[:MAX_NAME],
            "model": req.context.get("model"),
            "status": int(resp.status.split()[0]) if isinstance(resp.status, str) else resp.status,
            "reason": reason,
            "address": req.remote_addr,
        }
        _write(logging.DEBUG if reason is None else logging.INFO, fields)


def refused(status: int, reason: str, address: str) -> None:
    """Log a request that was refused before the application saw it."""
    _write(logging.INFO, {"status": status, "reason": reason, "address": address})


def _write(level: int, fields: dict[str, Any]) -> None:
    line = " ".join(f"{key}={_quoted(value)}" for key, value in fields.items() if value is not None)
    log.log(level, "%s", line, extra={"fields": fields})


def _quoted(value: object) -> str:
    """Text as JSON where it could be taken for another field or line."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
