"""Finished OCR jobs as files in the cache folder, which outlive the server, within limits of age and size.

Two files a job: its description, and its result, which can be large and is read on demand. The files hold users'
documents, so other users of the machine may not read them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

JOB_ID = re.compile(r"ocrjob-[0-9a-f]{32}")
_RESULT = ".result.json"


class JobFiles:
    """The folder of finished jobs."""

    def __init__(self, folder: Path, max_bytes: int, max_age: float, clock: Callable[[], float] = time.time) -> None:
        """max_age : seconds since a job's end, after which the job is deleted."""
        self._folder, self._max_bytes, self._max_age, self._clock = folder, max_bytes, max_age, clock
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Make the folder.

        Raises
        ------
        OSError
            when the folder cannot be made or written.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{self._folder} cannot be written")

    def save(self, job: dict[str, Any], result: dict[str, Any] | None) -> None:
        """Write a job that has ended, and make room for its files.

        Raises
        ------
        OSError
            when the folder cannot be written.
        """
        with self._lock:
            self.prepare()
            if result is not None:
                self._write(f"{job['id']}{_RESULT}", result)
            self._write(f"{job['id']}.json", job)  # last: a job with a description is whole
            self._make_room(keep=job["id"])

    def load(self, job_id: str) -> dict[str, Any] | None:
        """The description of a job that has ended; None where there is none."""
        if not JOB_ID.fullmatch(job_id):
            return None
        with self._lock:
            self._forget_old()
            return self._read(self._folder / f"{job_id}.json")

    def result(self, job_id: str) -> dict[str, Any] | None:
        """The job's result."""
        return self._read(self._folder / f"{job_id}{_RESULT}") if JOB_ID.fullmatch(job_id) else None

    def all(self) -> list[dict[str, Any]]:
        """All jobs that have ended, unordered."""
        with self._lock:
            self._forget_old()
            return [job for path in self._jobs() if (job := self._read(path)) is not None]

    def delete(self, job_id: str) -> None:
        """Delete a job's files."""
        if JOB_ID.fullmatch(job_id):
            with self._lock:
                self._remove(job_id)

    def _jobs(self) -> Iterator[Path]:
        return (path for path in self._folder.glob("ocrjob-*.json") if JOB_ID.fullmatch(path.stem))

    def _forget_old(self) -> None:
        for path in list(self._jobs()):
            if self._clock() - _modified(path) > self._max_age:
                self._remove(path.stem)

    def _make_room(self, keep: str) -> None:
        """Delete the oldest jobs until the rest fits; the job that has just ended stays, however large."""
        self._forget_old()
        oldest = sorted((path.stem for path in self._jobs()), key=lambda name: _modified(self._folder / f"{name}.json"))
        sizes = {
            name: _size(self._folder / f"{name}.json") + _size(self._folder / f"{name}{_RESULT}") for name in oldest
        }
        for name in oldest:
            if sum(sizes.values()) <= self._max_bytes:
                return
            if name != keep:
                self._remove(name)
                del sizes[name]

    def _remove(self, job_id: str) -> None:
        for name in (f"{job_id}.json", f"{job_id}{_RESULT}"):
            (self._folder / name).unlink(missing_ok=True)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        temporary = self._folder / f".{name}.part"
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / name)

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("the job file %s cannot be read: %s", path, error)
            return None
        return found if isinstance(found, dict) else None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another server of the same cache was faster
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
