"""Reads pages with a running server over its OpenAI-compatible API, so that no model is loaded here.

Answers are streamed: a working server sends something every few seconds, so that silence means a dead one, and load
balancers do not cut long pages off. After a transient failure (a busy queue, a restart, a lost connection) the page is
tried again.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import http.client
import io
import json
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image
from PIL.TiffImagePlugin import AppendingTiffWriter

from models.blocks import places_of
from models.grounding import Box
from models.joint import PagePart
from models.precedence import BY_NAME
from runtime.confidence import Confidence
from runtime.documents import DrawnPages
from server.options import KEYS_VARIABLE
from server.writers.result import block_of

from .command_errors import CommandFailed, Interrupted, PageFailed
from .progress import PageWork
from .readers import Reading, spread
from .server_address import ServerAddress, shut

log = logging.getLogger(__name__)

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
BUSY = frozenset({429, 503})  # the server is up, and overloaded
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0  # seconds between two tries: doubled each time, less up to half at random
LONGEST_RETRY_AFTER = 600.0
START_RETRIES = 2  # few: a wrong address should be told soon
GIVE_UP_AFTER = 3  # pages in a row that used up all their tries, after which the server counts as away
_MOST_ERROR_BYTES = 100_000


class _TryAgain(Exception):
    """A transient failure. ``after``: seconds that the server asked for. ``busy``: the server is up, and overloaded."""

    def __init__(self, reason: str, after: float = 0.0, *, busy: bool = False) -> None:
        super().__init__(reason)
        self.after, self.busy = after, busy


class RemoteReader:
    """See ``readers.Reader``."""

    def __init__(
        self, url: str, model: str | None, *, task: str | None, prompt: str | None, settings: Mapping[str, Any],
        api_key: str | None, retries: int, timeout: float, stop: threading.Event, jobs: int, raw: bool = False,
        several: Mapping[str, Any] | None = None, schema: str | None = None,
    ) -> None:  # fmt: skip
        """several : settings of an answer to several pages, where pages are read together.

        Raises
        ------
        UsageError
            for an invalid address, or a key that cannot be sent.
        """
        self.address = ServerAddress.of(url, api_key or os.environ.get(KEYS_VARIABLE, "").split(",")[0])
        self._model, self._task, self._prompt = model, task, prompt
        self._settings, self._raw, self._schema = dict(settings if several is None else several), raw, schema
        self.joint = several is not None
        self._retries, self._timeout, self._stop, self._jobs = retries, timeout, stop, jobs
        self._lock = threading.Lock()
        # In use, each with its socket, which a connection forgets where the answer is its last one.
        self._connections: dict[http.client.HTTPConnection, socket.socket | None] = {}
        self._given_up = 0  # pages in a row that were given up
        self._told = False  # the user has been told that the prompt is ignored
        self._away = False  # the user has been told that the server does not answer
        self._watcher: threading.Thread | None = None

    def identity(self) -> str | None:
        if self._model is None:
            return None
        others = [*(["raw"] if self._raw else []), *([self._schema] if self._schema else [])]
        what = ("server", self._model, self._task, self._prompt, sorted(self._settings.items()), *others)
        return hashlib.sha256(repr(what).encode()).hexdigest()

    def seen_pixels(self) -> int | None:
        return None

    def describe(self) -> dict[str, object]:
        return {
            "model": self._model,
            "server": self.address.url,
            "task": self._task,
            "prompt": self._prompt,
            "raw": self._raw,
            **({"schema": json.loads(self._schema)} if self._schema else {}),
            "settings": self._settings,
        }

    def start(self) -> int:
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._end_on_stop, name="stop", daemon=True)
            self._watcher.start()
            try:
                models = self._tried(START_RETRIES, lambda: self._get_json("/v1/models"))["data"]
                self._model = self._model or str(models[0]["id"])
            except PageFailed as error:
                raise CommandFailed(f"{self.address.url}: {error}") from error
            except (KeyError, IndexError, TypeError) as error:
                raise CommandFailed(f"{self.address.url} lists no models; name one with --model") from error
        return self._jobs

    def read(self, page: Image.Image, work: PageWork | None = None) -> Reading:
        buffer = io.BytesIO()
        page.save(buffer, "PNG", compress_level=1)
        url = "data:image/png;base64," + base64.b64encode(buffer.getbuffer()).decode()
        reading, _ = self._read({"type": "image_url", "image_url": {"url": url}}, work or PageWork())
        return reading

    def read_together(self, pages: DrawnPages, work: PageWork | None = None) -> list[Reading | PageFailed]:
        """See ``readers.Reader``. The pages are sent as frames of a TIFF, with unchanged pixels."""
        url = "data:image/tiff;base64," + base64.b64encode(_as_frames(pages)).decode()
        part = {"type": "file", "file": {"file_data": url, "filename": "pages.tif"}}
        whole, extension = self._read(part, work or PageWork())
        described = sorted(extension.get("pages", ()), key=lambda page: int(page["page"]))
        if len(described) != len(pages):
            raise PageFailed("the server does not say where each page's text is; one of ocr-onnx does")
        reached = [page for page in described if "error" not in page]
        parts = [PagePart(page["start"], page["end"], page.get("completion_tokens", 0)) for page in reached]
        places = extension.get("boxes", ())
        boxes = [[_box(entry) for entry in places if entry["page"] == page["page"]] for page in reached]
        blocks = [
            tuple(block_of(entry) for entry in extension.get("blocks", ()) if entry["page"] == page["page"])
            for page in reached
        ]
        readings = iter(spread(whole, parts, len(parts), boxes, blocks))
        return [PageFailed(str(page["error"])) if "error" in page else next(readings) for page in described]

    def _read(self, part: Mapping[str, Any], work: PageWork) -> tuple[Reading, Mapping[str, Any]]:
        """A whole answer, and the ``ocr`` extension of the server's response."""
        body = json.dumps(self._body(part)).encode()
        answer: tuple[Reading, Mapping[str, Any]] = self._tried(self._retries, lambda: self._ask(body, work))
        with self._lock:
            self._given_up = 0
        return answer

    def close(self) -> None:
        with self._lock:
            sockets = [connection.sock or kept for connection, kept in self._connections.items()]
        for one in sockets:
            shut(one)

    # One request.

    def _body(self, part: Mapping[str, Any]) -> dict[str, Any]:
        content: list[Mapping[str, Any]] = [part]
        if self._prompt is not None:
            content.append({"type": "text", "text": self._prompt})
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "ocr": {"boxes": True, "raw": self._raw},
        }
        if self._schema is not None:
            schema = {"name": "page", "schema": json.loads(self._schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self._task is not None:
            body["task"] = self._task
        for name, value in self._settings.items():
            setting = BY_NAME[name]
            if value is not None:
                body[setting.spellings[0]] = value
            elif setting.off:
                body[setting.spellings[0]] = setting.off[0]
        body["orient"] = "off"  # pages are sent upright, and boxes must fit them
        return body

    def _ask(self, body: bytes, work: PageWork) -> tuple[Reading, Mapping[str, Any]]:
        work.begin_again("sent")
        pieces: list[str] = []
        usage: Mapping[str, Any] = {}
        extension: Mapping[str, Any] | None = None
        with self._response("POST", "/v1/chat/completions", body) as response:
            for chunk in _events(response):
                if "error" in chunk:
                    raise _TryAgain(str(chunk["error"].get("message", "the server failed")))
                usage = chunk.get("usage") or usage
                extension = chunk.get("ocr") or extension
                for choice in chunk.get("choices", ()):
                    pieces.append(choice.get("delta", {}).get("content") or "")
                    if pieces[-1]:
                        work.stage = "reading"
                        work.add(pieces[-1], 1)  # a piece is one token, mostly
                    if extension is None and choice.get("finish_reason"):  # another server than ocr-onnx
                        extension = {"finish_detail": _DETAILS.get(choice["finish_reason"], "eos")}
        if extension is None:
            raise _TryAgain("the answer broke off before its end")
        if extension.get("finish_detail") == "cancelled":
            raise _TryAgain("the server was stopped while it read the page")
        if extension.get("finish_detail") == "no_image":  # the text is a message to a person, not the page's
            raise PageFailed("the server got no image; what stands between here and there has taken it out")
        if extension.get("prompt_ignored") and not self._told:
            self._told = True
            log.warning("the server's model knows only its own prompts; the pages are read with its default task")
        sure = extension.get("confidence")
        blocks = tuple(block_of(entry) for entry in extension.get("blocks", ()))
        reading = Reading(
            "".join(pieces),
            places_of(blocks, (_box(box) for box in extension.get("boxes", ()))),
            str(extension.get("finish_detail", "eos")),
            int(usage.get("prompt_tokens", 0)),
            int(usage.get("completion_tokens", 0)),
            {str(stage): float(seconds) for stage, seconds in extension.get("timings", {}).items()},
            Confidence(float(sure["mean"]), float(sure["lowest"])) if sure else None,
            blocks,
        )
        return reading, extension

    def _get_json(self, path: str) -> Any:
        with self._response("GET", path) as response:
            try:
                return json.loads(response.read())
            except ValueError:
                raise CommandFailed(f"{self.address.url} answers {path} with something else than JSON") from None

    @contextlib.contextmanager
    def _response(self, method: str, path: str, body: bytes | None = None) -> Iterator[http.client.HTTPResponse]:
        """Send a request; yields the response when its status is 200.

        Raises
        ------
        _TryAgain, PageFailed, CommandFailed, Interrupted
        """
        connection, target, headers = self.address.connection(path, self._timeout)
        with self._lock:
            self._connections[connection] = None
        try:
            typed = {"Content-Type": "application/json"} if body else {}
            connection.request(method, target, body, {**headers, **typed})
            with self._lock:
                self._connections[connection] = connection.sock
            response = connection.getresponse()
            if response.status != 200:
                raise self._refusal(response)
            yield response
        except (OSError, http.client.HTTPException) as error:
            if self._stop.is_set():
                raise Interrupted from None
            raise _TryAgain(f"{type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._connections.pop(connection)
            connection.close()

    def _refusal(self, response: http.client.HTTPResponse) -> Exception:
        status = response.status
        message = _message(response.read(_MOST_ERROR_BYTES), f"{status} {response.reason}")
        if status in RETRIED:
            return _TryAgain(message, seconds_to_wait(response.headers.get("Retry-After")), busy=status in BUSY)
        if status in (401, 403):
            return CommandFailed(
                f"{self.address.url} refuses the API key: {message}; set {KEYS_VARIABLE} or name it with --api-key"
            )
        if status == 404 or 300 <= status < 400:
            return CommandFailed(f"{self.address.url}: {message}; is the address right, and the model's id?")
        return PageFailed(f"the server refuses the page: {message}")

    # Trying again.

    def _tried(self, retries: int, attempt: Any) -> Any:
        """The result of ``attempt``, which is called again while it raises ``_TryAgain``.

        Raises
        ------
        PageFailed
            when the last try raises it, too.
        CommandFailed
            when that happened to several pages in a row, unless the server was busy.
        Interrupted
            when the user wants an end, which breaks off answers in flight.
        """
        for number in range(retries + 1):
            if self._stop.is_set():
                raise Interrupted
            try:
                result = attempt()
                self._away = False
                return result
            except _TryAgain as problem:
                if self._stop.is_set():
                    raise Interrupted from None
                if number == retries:
                    raise self._exhausted(problem, retries) from problem
                self._tell(problem)
                delay = min(LONGEST_DELAY, FIRST_DELAY * 2**number) * random.uniform(0.5, 1.0)
                delay = max(delay, min(problem.after, LONGEST_RETRY_AFTER))
                log.info("%s; trying again in %.1f s", problem, delay)
                if self._stop.wait(delay):
                    raise Interrupted from None
        raise AssertionError("the loop returns or raises")

    def _tell(self, problem: _TryAgain) -> None:
        """Log once that the server is away, as a bar that stands still explains nothing; not for a busy server."""
        with self._lock:
            told, self._away = self._away, self._away or not problem.busy
        if self._away and not told:
            log.warning("%s: %s; trying again", self.address.url, problem)

    def _exhausted(self, problem: _TryAgain, retries: int) -> Exception:
        with self._lock:
            self._given_up = 0 if problem.busy else self._given_up + 1
            away = self._given_up >= GIVE_UP_AFTER
        if away:
            return CommandFailed(
                f"{self.address.url} does not answer any more ({problem}); go on with --resume when it does"
            )
        return PageFailed(f"given up after {retries + 1} tries: {problem}", transient=True)

    def _end_on_stop(self) -> None:
        self._stop.wait()
        self.close()


_DETAILS = {"stop": "eos", "length": "max_tokens"}


def _events(response: http.client.HTTPResponse) -> Iterator[Mapping[str, Any]]:
    """The data of server-sent events, up to ``[DONE]``."""
    for raw in response:
        line = raw.strip()
        if not line.startswith(b"data:"):
            continue  # comments, which keep the connection alive
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise _TryAgain(f"the server sent something else than JSON: {error}") from error
        if isinstance(event, dict):
            yield event


def _as_frames(pages: DrawnPages) -> bytes:
    """Pages as one lossless TIFF; one page at a time is in memory as pixels."""
    buffer = io.BytesIO()
    with AppendingTiffWriter(buffer) as frames:
        for page in pages:
            page.save(frames, "TIFF", compression="tiff_adobe_deflate")
            frames.newFrame()
    return buffer.getvalue()


def _box(entry: Mapping[str, Any]) -> Box:
    x0, y0, x1, y1 = (int(value) for value in entry["box"])
    return Box(str(entry["label"]), str(entry["text"]), (x0, y0, x1, y1))


def _message(body: bytes, otherwise: str) -> str:
    """The message in an error's body of OpenAI's form, else ``otherwise``."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return otherwise


def seconds_to_wait(retry_after: str | None) -> float:
    """Retry-After as seconds or as a date; 0 for none."""
    if not retry_after:
        return 0.0
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0
