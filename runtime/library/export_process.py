"""The exporter as a program of its own (``python -m export``): its output, its exit, its interruption."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence

from models.exporter import environment

log = logging.getLogger(__name__)

END_SECONDS = 10.0  # seconds between an interrupt and a kill, for the exporter to tidy up
_BAR_SECONDS = 5.0  # seconds; progress bars repaint often, and the log takes one line in this time
_MODULES = ("ml_dtypes", "onnx_ir", "onnxscript", "safetensors")  # what the exporter imports


class ExportProcess:
    """One run of ``python -m export``. ``progress`` is the last line of its output."""

    def __init__(self, model: str, command: Sequence[str]) -> None:
        self.progress = "starting"
        self._model, self._command = model, command
        self._process: subprocess.Popen[str] | None = None
        self._ended = threading.Event()

    def run(self) -> str | None:
        """Wait for the exporter's end; returns the whole reason of a failure, None after success."""
        with subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            encoding="utf-8", errors="replace", env=environment(),
        ) as process:  # fmt: skip
            self._process = process
            if self._ended.is_set():
                self.end()
            assert process.stdout is not None
            reason = self._follow(process.stdout)
        return (reason or f"it ended with status {process.returncode}") if process.returncode else None

    def end(self) -> None:
        """Interrupt the exporter, so that it removes what it has begun; kill it when that does not help. Does not
        wait."""
        self._ended.set()
        process = self._process
        if process is None or process.poll() is not None:
            return
        if os.name == "nt":
            process.terminate()
            return
        process.send_signal(signal.SIGINT)
        killer = threading.Timer(END_SECONDS, process.kill)
        killer.daemon = True
        killer.start()

    @property
    def ended(self) -> bool:
        """Whether ``end`` was called."""
        return self._ended.is_set()

    def _follow(self, lines: Iterable[str]) -> str:
        """Log the output line by line; returns the error's message with all its lines, or the last line where there is
        none."""
        error: list[str] = []
        last, last_bar = "", 0.0
        for raw in lines:
            line = raw.strip()
            if not line:
                continue
            self.progress = line
            if "%|" in line:
                if time.monotonic() - last_bar >= _BAR_SECONDS:
                    last_bar = time.monotonic()
                    log.info("export %s: %s", self._model, line)
                continue
            last = line
            if error or line.startswith("error: "):
                error.append(line.removeprefix("error: "))
            log.info("export %s: %s", self._model, line)
        return " ".join(error) or last


def missing_for_export() -> list[str]:
    """Packages that the exporter needs and this installation lacks."""
    return [name for name in ("export", *_MODULES) if importlib.util.find_spec(name) is None]
