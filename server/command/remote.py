"""Reads pages with a running server over its OpenAI-compatible API, so that no model is loaded here.

Answers are streamed: a server that works sends something every few seconds, so silence means that it is gone, and load
balancers do not cut long pages off. What may pass (a busy queue, a restart, a lost connection) is tried again.
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
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

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

from .command_errors import CommandFailed, Interrupted, PageFailed, UsageError
from .progress import PageWork
from .readers import Reading, spread

log = logging.getLogger(__name__)

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
BUSY = frozenset({429, 503})  # somebody is there and has too much to do
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0  # seconds between two tries; doubled each time, the first ones half at random
LONGEST_RETRY_AFTER = 600.0
START_RETRIES = 2  # a wrong address should be told at once
GIVE_UP_AFTER = 3  # pages in a row that used up all their tries: the server is away
_MOST_ERROR_BYTES = 100_000


class _TryAgain(Exception):
    """What may pass. ``after``: seconds that the server asked for. ``busy``: it is there and has too much to do."""

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
        """several : settings of an answer to several pages, where one is asked for.

        Raises
        ------
        UsageError
            for an address that is none, or a key that cannot be sent.
        """
        address = _checked(url)
        self._url = address._replace(netloc=address.netloc.rpartition("@")[2])  # as it is told and written
        self._proxy = _proxy_for(self._url)
        self._model, self._task, self._prompt = model, task, prompt
        self._settings, self._raw, self._schema = dict(settings if several is None else several), raw, schema
        self.joint = several is not None
        self._retries, self._timeout, self._stop, self._jobs = retries, timeout, stop, jobs
        key = _checked_key((api_key or os.environ.get(KEYS_VARIABLE, "").split(",")[0]).strip())
        login = f"Bearer {key}" if key else _basic(address)
        self._headers = {"User-Agent": "ocr-onnx", **({"Authorization": login} if login else {})}
        self._lock = threading.Lock()
        self._connections: set[http.client.HTTPConnection] = set()
        self._given_up = 0  # pages in a row
        self._told = False  # that the prompt is ignored
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
            "server": self._url.geturl(),
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
                raise CommandFailed(f"{self._url.geturl()}: {error}") from error
            except (KeyError, IndexError, TypeError) as error:
                raise CommandFailed(f"{self._url.geturl()} lists no models; name one with --model") from error
        return self._jobs

    def read(self, page: Image.Image, work: PageWork | None = None) -> Reading:
        buffer = io.BytesIO()
        page.save(buffer, "PNG", compress_level=1)
        url = "data:image/png;base64," + base64.b64encode(buffer.getbuffer()).decode()
        reading, _ = self._read({"type": "image_url", "image_url": {"url": url}}, work or PageWork())
        return reading

    def read_together(self, pages: DrawnPages, work: PageWork | None = None) -> list[Reading | PageFailed]:
        """The pages go to the server as the frames of a TIFF, each with the pixels that it has here."""
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
        """A whole answer, and what the server says beside its text."""
        body = json.dumps(self._body(part)).encode()
        answer: tuple[Reading, Mapping[str, Any]] = self._tried(self._retries, lambda: self._ask(body, work))
        with self._lock:
            self._given_up = 0
        return answer

    def close(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _shut(connection)

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
        body["orient"] = "off"  # pages come from here as they are to be read, and so do their places
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
                        work.add(pieces[-1], 1)  # a piece has a token, mostly
                    if extension is None and choice.get("finish_reason"):  # a server of another make
                        extension = {"finish_detail": _DETAILS.get(choice["finish_reason"], "eos")}
        if extension is None:
            raise _TryAgain("the answer broke off before its end")
        if extension.get("finish_detail") == "cancelled":
            raise _TryAgain("the server was stopped while it read the page")
        if extension.get("finish_detail") == "no_image":  # its text is a sentence to a person, and not the page's
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
                raise CommandFailed(f"{self._url.geturl()} answers {path} with something else than JSON") from None

    @contextlib.contextmanager
    def _response(self, method: str, path: str, body: bytes | None = None) -> Iterator[http.client.HTTPResponse]:
        """Send a request; the response to it when that is a 200.

        Raises
        ------
        _TryAgain, PageFailed, CommandFailed, Interrupted
        """
        connection, target, more = self.connection(path)
        with self._lock:
            self._connections.add(connection)
        try:
            headers = {**self._headers, **more, **({"Content-Type": "application/json"} if body else {})}
            connection.request(method, target, body, headers)
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
                self._connections.discard(connection)
            connection.close()

    def connection(self, path: str) -> tuple[http.client.HTTPConnection, str, Mapping[str, str]]:
        """A connection, perhaps through a proxy, what to ask it for, and the headers for the proxy."""
        url, via = self._url, self._proxy
        host, port = url.hostname or "", url.port
        target = f"{url.path}{path}"
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        if via is None:
            return kind(host, port, timeout=self._timeout), target, {}
        connection = kind(via.hostname or "", via.port or 80, timeout=self._timeout)
        login = _basic(via)
        headers = {"Proxy-Authorization": login} if login else {}
        if url.scheme == "https":
            connection.set_tunnel(host, port or 443, headers)
            return connection, target, {}
        return connection, f"{url.scheme}://{url.netloc}{target}", headers

    def _refusal(self, response: http.client.HTTPResponse) -> Exception:
        status = response.status
        message = _message(response.read(_MOST_ERROR_BYTES), f"{status} {response.reason}")
        if status in RETRIED:
            return _TryAgain(message, seconds_to_wait(response.headers.get("Retry-After")), busy=status in BUSY)
        if status in (401, 403):
            return CommandFailed(
                f"{self._url.geturl()} refuses the API key: {message}; set {KEYS_VARIABLE} or name it with --api-key"
            )
        if status == 404 or 300 <= status < 400:
            return CommandFailed(f"{self._url.geturl()}: {message}; is the address right, and the model's id?")
        return PageFailed(f"the server refuses the page: {message}")

    # Trying again.

    def _tried(self, retries: int, attempt: Any) -> Any:
        """The result of ``attempt``, which is made again while it asks for that.

        Raises
        ------
        PageFailed
            when it still does after the last try.
        CommandFailed
            when that happened to several pages in a row and the server was not just busy.
        Interrupted
            when the user wants an end, which breaks running answers off.
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
        """Say once that the server is away, for a bar that stands still explains nothing; a busy one is no news."""
        with self._lock:
            told, self._away = self._away, self._away or not problem.busy
        if self._away and not told:
            log.warning("%s: %s; trying again", self._url.geturl(), problem)

    def _exhausted(self, problem: _TryAgain, retries: int) -> Exception:
        with self._lock:
            self._given_up = 0 if problem.busy else self._given_up + 1
            away = self._given_up >= GIVE_UP_AFTER
        if away:
            return CommandFailed(
                f"{self._url.geturl()} does not answer any more ({problem}); go on with --resume when it does"
            )
        return PageFailed(f"given up after {retries + 1} tries: {problem}", transient=True)

    def _end_on_stop(self) -> None:
        self._stop.wait()
        self.close()


_DETAILS = {"stop": "eos", "length": "max_tokens"}


def _checked(url: str) -> SplitResult:
    parts = _split(url.strip().rstrip("/").removesuffix("/v1"))
    if parts is None or parts.scheme not in ("http", "https"):
        shown = url.rpartition("@")[2]  # no password on the screen
        raise UsageError(f"--server {shown!r:.200} is no address; write one such as http://gpu:8000")
    return parts


def _split(url: str) -> SplitResult | None:
    """The parts of an address; None where it has no host, or one that cannot be."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 else None  # a port that is no number raises
    except ValueError:
        return None


def _checked_key(key: str) -> str:
    for place, character in enumerate(key, 1):
        if not character.isprintable() or ord(character) > 0xFF:
            raise UsageError(
                f"character {place} of the API key is {character!a}, which no HTTP header holds; copy the key anew "
                f"into {KEYS_VARIABLE} or --api-key"
            )
    return key


def _proxy_for(url: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for an address.

    Raises
    ------
    UsageError
        when that is no address.
    """
    host = url.hostname or ""
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(url.scheme)
    if not proxy:
        return None
    via = _split(proxy if "://" in proxy else f"http://{proxy}")
    if via is None:
        shown = proxy.rpartition("@")[2]
        raise UsageError(f"{url.scheme}_proxy {shown!r:.200} is no address; write one such as http://proxy:3128")
    return via


def _basic(address: SplitResult) -> str:
    """The header's value for the user and the password in an address; empty where there is none."""
    if address.username is None:
        return ""
    login = f"{unquote(address.username)}:{unquote(address.password or '')}"
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def _events(response: http.client.HTTPResponse) -> Iterator[Mapping[str, Any]]:
    """The data of server-sent events, up to ``[DONE]``."""
    for raw in response:
        line = raw.strip()
        if not line.startswith(b"data:"):
            continue  # comments keep the connection alive
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
    """Pages as one TIFF without loss, of which no more than one is in memory as pixels."""
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
    """What an error's body says, in OpenAI's shape or not."""
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


def _shut(connection: http.client.HTTPConnection) -> None:
    """End a connection that another thread waits on."""
    with contextlib.suppress(OSError, AttributeError):  # not connected yet, or not any more
        connection.sock.shutdown(socket.SHUT_RDWR)
