"""The export as a contender: one dtype of one checkpoint, in a process of its own, timed from start to exit."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tools.reference_family import registration_of

from .plan import Case, Kind
from .turns import BenchError, Memory
from .worker import ROOT


class ExportContender:
    """See ``turns.Contender``. Each sample exports anew."""

    def __init__(self, checkpoint: Path, dtype: str, vision_dtype: str | None, target: Path) -> None:
        self._checkpoint, self._dtype, self._vision_dtype, self._target = checkpoint, dtype, vision_dtype, target

    def name(self, kind: Kind) -> str:
        return f"ours {self._dtype}"

    def can(self, case: Case) -> bool:
        return case.part == "export"

    def memory(self, kind: Kind) -> Memory:
        return Memory(3 * 10**9, 0)

    def prepare(self, case: Case) -> None:
        """Do nothing: an export without a warm-up reads the checkpoint from disk, as a user's does."""

    def sample(self, case: Case) -> Mapping[str, float]:
        """Seconds, the process's peak memory (mapped files among it), and the size of what was published."""
        with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile("w+", errors="replace") as log:
            command = [
                sys.executable, "-m", "export", registration_of(self._checkpoint).models[0].id,
                "--source", str(self._checkpoint),
                "--dtype", self._dtype, "--output", str(self._target), "--force", "--config", f"{home}/config.toml",
                "--init-config",
                *(["--vision-dtype", self._vision_dtype] if self._vision_dtype else []),
            ]  # fmt: skip
            started = time.perf_counter()
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            if not hasattr(os, "wait4"):
                raise BenchError("measuring an export's memory needs os.wait4, which this system does not have")
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - started
            if process.returncode:
                log.seek(0)
                raise BenchError(f"the export failed: {' | '.join(log.read().splitlines()[-5:])}")
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        size = sum(file.stat().st_size for file in self._target.iterdir())
        return {"s": seconds, "GB peak": peak / 1e9, "GB on disk": size / 1e9}

    def close(self) -> None:
        """Nothing stays."""
