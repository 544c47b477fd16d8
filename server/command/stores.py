"""The storage of an output folder: a disk, or a bucket by fsspec (``buckets``).

``folder.OutputFolder`` decides what is written and when; a store knows how a file appears whole, how a line is added to
the run manifest, and how one run locks out others. Names are paths below the folder, with ``/``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, TextIO

from filelock import FileLock, Timeout

from .command_errors import UsageError


class Store(Protocol):
    """Every method but ``where`` raises OSError when the disk or the network refuses."""

    def where(self, name: str) -> str:
        """The file's name in messages."""

    def take(self) -> None:
        """Lock other runs out, and be ready to write. Raises UsageError where another run writes, or none can."""

    def leave(self) -> None:
        """Unlock, and leave only results, and parts that a later run goes on from."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    def names(self, folder: str) -> Iterable[str]:
        """Names of the files and folders in a folder, relative to that folder; none where there is no such folder."""

    def read(self, name: str) -> bytes:
        """A file's content."""

    def publishing(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A temporary file that is moved into place when the block ends without an error. Any thread may call this."""

    def remove(self, folder: str) -> None:
        """Remove a folder with its content, where there is one."""

    def lines(self) -> Iterator[str]:
        """The lines of the run manifest from earlier runs."""

    def begin(self) -> None:
        """Make the manifest ready for more lines."""

    def add(self, line: str, *, durable: bool) -> None:
        """Add a line; ``durable``: the line must survive a power cut."""


class Disk:
    """A folder of a file system."""

    def __init__(self, folder: Path, manifest: str, parts: str) -> None:
        """manifest, parts : names of the run manifest and of the folder of parts."""
        self._folder, self._parts = folder, folder / parts
        self._manifest_path = folder / manifest
        self._manifest: TextIO | None = None
        self._lock = FileLock(self._parts / "lock")
        self._temporary = self._parts / "tmp"

    def where(self, name: str) -> str:
        return str(self._folder / name)

    def take(self) -> None:
        try:
            _make_folder(self._parts)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"another run is writing to {self._folder}; wait for it, or name another folder") from None
        except OSError as error:
            raise UsageError(f"{self._folder} cannot be written: {error}; name another folder with -o") from error
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir()

    def leave(self) -> None:
        if self._manifest is not None:
            with contextlib.suppress(OSError):  # a write that failed has been reported
                self._manifest.close()
        shutil.rmtree(self._temporary, ignore_errors=True)
        empty = not any(path.is_dir() for path in self._parts.iterdir())
        self._lock.release()
        if empty:
            shutil.rmtree(self._parts, ignore_errors=True)

    def exists(self, name: str) -> bool:
        return (self._folder / name).exists()

    def names(self, folder: str) -> Iterable[str]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return [path.name for path in (self._folder / folder).iterdir()]
        return ()

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    @contextlib.contextmanager
    def publishing(self, name: str) -> Iterator[Path]:
        target = self._folder / name
        handle, temporary = tempfile.mkstemp(dir=self._temporary)
        os.close(handle)
        path = Path(temporary)
        try:
            yield path
            path.chmod(0o644)
            _make_folder(target.parent)
            _sync(path)
            path.replace(target)
            _sync_folder(target.parent)
        finally:
            path.unlink(missing_ok=True)

    def remove(self, folder: str) -> None:
        shutil.rmtree(self._folder / folder, ignore_errors=True)

    def lines(self) -> Iterator[str]:
        with (
            contextlib.suppress(FileNotFoundError),
            self._manifest_path.open(encoding="utf-8", errors="replace") as file,
        ):
            yield from file

    def begin(self) -> None:
        self._end_torn_line()
        self._manifest = self._manifest_path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")
        _sync_folder(self._folder)

    def add(self, line: str, *, durable: bool) -> None:
        assert self._manifest is not None
        self._manifest.write(line + "\n")
        self._manifest.flush()
        if durable:
            os.fsync(self._manifest.fileno())

    def _end_torn_line(self) -> None:
        """End a line that a kill cut off, lest it swallow the next one."""
        with contextlib.suppress(FileNotFoundError), self._manifest_path.open("r+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, and flush them against a power cut."""
    if not folder.is_dir():
        if folder.parent != folder:
            _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync(file: Path) -> None:
    """Flush a file, so that a power cut after its rename does not leave an empty one."""
    with file.open("r+b") as opened:  # Windows flushes only files opened for writing
        os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder, where the system can do that (Windows cannot)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
