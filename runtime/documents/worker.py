"""The program of a worker process, which opens one document at a time and draws its pages on demand.

``workers.Worker`` starts it and speaks with it over standard input and output. A message is a line of JSON; where its
``bytes`` says so, that many bytes follow it: a document's content on the way in, a page's RGB pixels on the way out.

===========  =======================================  =========================================
``do``       with                                     answer
===========  =======================================  =========================================
``open``     path or bytes, name, dpi, max_pixels,    ``pages``
             picture, transparency, password,
             shown_pixels
``size``     page                                     ``width``, ``height``, ``weight``
``draw``     page, orient                             ``width``, ``height``, ``warnings``, ``truncated``,
                                                      ``dpi``, ``rotated`` and the pixels
``close``                                             none
===========  =======================================  =========================================

What is wrong with the document is answered as ``error``. The process ends with its input, so that not even a page that
draws for ever outlives the parent.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from models.model_errors import InvalidInput

from .drawn import Drawn
from .limits import TooManyPixels
from .mutters import Mutters
from .pdf import NotPdf, PdfPages
from .picture import PicturePages
from .repair import EDGE, HEADER, HEADER_WITHIN, is_pdf_without_its_start
from .strips import rows_of_a_strip
from .upright import upright

TIRED_BYTES = 256 << 20  # bytes kept beyond those at the start, from which on a new worker is better


def main(memory: int, seconds: float) -> None:
    """Serve until the input ends. ``memory``: limit in bytes; ``seconds``: limit of one command, on the clock."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    mutters = Mutters()
    commands: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, commands), name="listen", daemon=True).start()
    _limit_memory(memory)
    _Drawer(answers, seconds, mutters).serve(commands)


def _listen(source: BinaryIO, commands: queue.SimpleQueue[tuple[dict[str, Any], bytes]]) -> None:
    """Take commands, even while a page is drawn, and end the process when the input ends."""
    while line := source.readline():
        command = json.loads(line)
        commands.put((command, source.read(command.get("bytes", 0))))
    os._exit(0)


def _limit_memory(memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: only the parent's watch limits memory
        return
    limit = psutil.Process().memory_info().vms + memory
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or limit < most:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        except (OSError, ValueError):  # macOS may refuse; the parent's watch stays
            return


class _Drawer:
    """Executes commands one after the other."""

    def __init__(self, answers: BinaryIO, seconds: float, mutters: Mutters) -> None:
        self._answers, self._seconds, self._mutters = answers, seconds, mutters
        self._pages: PdfPages | PicturePages | None = None
        self._warnings: tuple[str, ...] = ()  # about the open document, repeated for each page
        self._process = psutil.Process()
        self._rested = self._process.memory_info().rss

    def serve(self, commands: queue.SimpleQueue[tuple[dict[str, Any], bytes]]) -> None:
        self._answer({"ready": True})
        while True:
            command, content = commands.get()
            _alarm(self._seconds)
            try:
                self._carry_out(command, content)
            except InvalidInput as error:
                reason = "; ".join([str(error), *self._mutters.taken()])
                self._answer({"error": reason, "too_many_pixels": isinstance(error, TooManyPixels)})
            except MemoryError:
                self._answer({"error": None})
            except Exception:  # a bug of ours or of a library ends this page, not the process
                self._answer({"error": "an internal error", "traceback": traceback.format_exc()})
            _alarm(0)
            del command, content

    def _carry_out(self, command: dict[str, Any], content: bytes) -> None:
        match command["do"]:
            case "open":
                self._close()
                self._mutters.taken()  # drops what was said about the document before
                self._pages = _opened(command, content)
                self._warnings = (*self._pages.warnings, *self._mutters.taken())
                self._answer({"pages": self._pages.count})
            case "size":
                width, height = self._opened.size(command["page"])
                weight = max(width * height, self._opened.weight(command["page"]))
                self._answer({"width": width, "height": height, "weight": weight})
            case "draw":
                drawn = self._opened.page(command["page"])
                self._send(upright(drawn) if command["orient"] == "auto" else drawn)
            case "close":
                self._close()

    @property
    def _opened(self) -> PdfPages | PicturePages:
        assert self._pages is not None, "a page was asked for before a document was opened"
        return self._pages

    def _send(self, drawn: Drawn) -> None:
        image = drawn.image
        tired = self._process.memory_info().rss - self._rested > TIRED_BYTES + 4 * image.width * image.height
        warnings = list(dict.fromkeys([*self._warnings, *drawn.warnings, *self._mutters.taken()]))
        self._answer(
            {"width": image.width, "height": image.height, "warnings": warnings, "truncated": drawn.truncated,
             "dpi": drawn.dpi, "rotated": drawn.rotated, "tired": tired}
        )  # fmt: skip
        rows = rows_of_a_strip(image.width)
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            self._write(strip.tobytes())

    def _close(self) -> None:
        if self._pages is not None:
            self._pages.close()
            self._pages = None

    def _answer(self, answer: dict[str, Any]) -> None:
        self._write(json.dumps(answer).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._answers.write(view) :]


def _opened(command: dict[str, Any], content: bytes) -> PdfPages | PicturePages:
    name, max_pixels, first_only = command["name"], command["max_pixels"], command["picture"]
    shown = min(max_pixels, command["shown_pixels"] or max_pixels)
    source = content if command["path"] is None else Path(command["path"])
    start, end = _edges(source, name)
    if not start:
        raise InvalidInput(f"{name} is empty; it has 0 bytes")
    is_pdf = HEADER in start[:HEADER_WITHIN]
    if not is_pdf:
        try:
            return PicturePages(
                source, name, max_pixels, first_only=first_only, transparency=command["transparency"], shown=shown
            )
        except InvalidInput as unknown:
            if not is_pdf_without_its_start(start, end):
                raise
            try:
                return _pdf(source, command, shown)
            except NotPdf:  # text that only mentions PDF's marks
                raise unknown from None
    return _pdf(source, command, shown)


def _pdf(source: Path | bytes, command: dict[str, Any], shown: int) -> PdfPages:
    name = command["name"]
    if not command["picture"]:
        return PdfPages(source, name, command["dpi"], shown, command["password"])
    raise InvalidInput(
        f'{name} is a PDF; send it in a part {{"type": "file", "file": {{"file_data": '
        '"data:application/pdf;base64,..."}} (Responses: input_file)'
    )


def _edges(source: Path | bytes, name: str) -> tuple[bytes, bytes]:
    """The first and the last bytes of a file."""
    if isinstance(source, bytes):
        return source[:EDGE], source[-EDGE:]
    try:
        with source.open("rb") as file:
            start = file.read(EDGE)
            file.seek(max(0, file.seek(0, os.SEEK_END) - EDGE))
            return start, file.read(EDGE)
    except OSError as error:
        raise InvalidInput(f"{name} cannot be opened: {os.strerror(error.errno or 0)}") from error


def _alarm(seconds: float) -> None:
    """Let the system end this process after ``seconds``, should the parent be stopped and not watch; 0: never."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, seconds)
