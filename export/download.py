"""Resumable, checked downloads over HTTP: what both hubs share.

huggingface_hub discards partial files when a run ends (seen in 2.4: partial files have random names and are removed).
Checkpoints have gigabytes, so their files are downloaded here: an ``.incomplete`` file outlives the process, the next
run requests the rest with a Range header, and a file gets its final name only when size and hash are the hub's.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import NoReturn

import httpx2
from filelock import FileLock, Timeout
from tqdm import tqdm

from .export_errors import ExportError

# Files of a repository that an export can use, in its root only.
WANTED = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "chat_template*",
)
_PLAIN_NAME = re.compile(r"[\w.-]+")

_ATTEMPTS = 5  # tries in a row without a new byte
_RETRY_WAIT_S = 1.0  # seconds after the first failure; doubled with each further one
_TIMEOUT = httpx2.Timeout(30.0, connect=10.0)  # seconds without any data

Report = Callable[[str], None]


class Unreachable(ExportError):
    """A hub that does not answer, or cannot serve: another hub may have the files."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository, with the hub's size and hash."""

    path: str
    url: str
    size: int  # bytes
    digest: str  # hex: 64 digits are the SHA-256 of the content, 40 are git's id of the blob

    def __post_init__(self) -> None:
        """Refuse invalid digests, and paths that leave the folder: both become file names."""
        if self.size < 0 or not is_digest(self.digest) or not _PLAIN_NAME.fullmatch(self.path):
            raise ValueError(f"no usable entry of a file list: {self}")


def wanted(path: str) -> bool:
    """Whether an export can use this file of a repository."""
    return _PLAIN_NAME.fullmatch(path) is not None and any(fnmatch(path, pattern) for pattern in WANTED)


def is_digest(text: str) -> bool:
    """Whether the text is a SHA-256 or a git id in hex."""
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) is not None


def mismatch(path: Path, size: int | None, digest: str) -> str | None:
    """Compare a file with the hub's size and hash: None when it is whole, else what was expected and found."""
    found_size = path.stat().st_size
    if size is not None and found_size != size:
        return f"expected {size} bytes, found {found_size}"
    with path.open("rb") as file:
        if len(digest) == 40:  # git hashes a header with the content: `git hash-object`
            blob = hashlib.sha1(b"blob %d\0" % found_size)
            found = hashlib.file_digest(file, lambda: blob).hexdigest()
        else:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == digest else f"expected hash {digest}, found {found}"


def download(
    files: Sequence[tuple[RemoteFile, Path]], *, lock: Path, headers: Mapping[str, str], report: Report
) -> None:
    """Download every file that is not in its place and whole.

    A second process that wants the same files waits for the ``lock`` file, and then finds them there.

    Raises
    ------
    ExportError
        for too little disk space, a read-only folder, or a file that arrives damaged twice.
    httpx2.TransportError, httpx2.HTTPStatusError
        when the server stays away, or refuses; received bytes are kept for the next run.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with (
            _held(lock, report),
            httpx2.Client(headers=dict(headers), follow_redirects=True, timeout=_TIMEOUT) as client,
            tqdm(total=sum(file.size for file, _ in files), unit="B", unit_scale=True, desc="download") as bar,
        ):
            _check_disk(files)
            for file, target in files:
                target.parent.mkdir(parents=True, exist_ok=True)
                _bring(file, target, client, bar, report)
    except OSError as error:
        raise ExportError(f"the downloaded files cannot be written or read: {error}") from error


@contextmanager
def _held(lock: Path, report: Report) -> Iterator[None]:
    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        report("another process is downloading the same files; waiting for it to finish")
        file_lock.acquire()
    try:
        yield
    finally:
        file_lock.release()


def _bring(file: RemoteFile, target: Path, client: httpx2.Client, bar: tqdm[NoReturn], report: Report) -> None:
    before = bar.n
    if target.is_file():
        wrong = mismatch(target, file.size, file.digest)
        if wrong is None:
            bar.update(file.size)
            return
        report(f"{file.path} in the cache is damaged ({wrong}); fetching it again")
        target.unlink()
    partial = _partial(target)
    for _ in range(2):
        _transfer(file, partial, client, bar, report)
        wrong = mismatch(partial, file.size, file.digest)
        if wrong is None:
            partial.replace(target)
            return
        report(f"{file.path} arrived damaged ({wrong})")
        partial.unlink()
        bar.update(before - bar.n)
    raise ExportError(
        f"{file.path} arrived damaged twice: {wrong}; the damaged file was deleted. A proxy or mirror on the way may "
        f"change it: try again later, or from another network (its address: {file.url})"
    )


def _transfer(file: RemoteFile, partial: Path, client: httpx2.Client, bar: tqdm[NoReturn], report: Report) -> None:
    """Append to the partial file until it is complete, with a new request when the connection breaks."""
    partial.touch()
    have = partial.stat().st_size
    report(f"{file.path}: {file.size / 1e6:,.1f} MB" + (f", the first {have / 1e6:,.1f} MB are here" if have else ""))
    bar.update(have)
    failures = 0
    while have < file.size:
        trouble: Exception = httpx2.RemoteProtocolError("the answer ended early")
        try:
            _append(file, partial, client, bar)
        except httpx2.TransportError as error:
            trouble = error
        except httpx2.HTTPStatusError as error:
            if not is_temporary(error.response.status_code):
                raise
            trouble = error
        had, have = have, partial.stat().st_size
        failures = 0 if have > had else failures + 1
        if failures >= _ATTEMPTS:
            raise trouble
        if have < file.size:
            time.sleep(_RETRY_WAIT_S * 2 ** max(failures - 1, 0))


def _append(file: RemoteFile, partial: Path, client: httpx2.Client, bar: tqdm[NoReturn]) -> None:
    have = partial.stat().st_size
    headers = {"Accept-Encoding": "identity"}  # compressed bytes could not be resumed
    if have:
        headers["Range"] = f"bytes={have}-"
    with client.stream("GET", file.url, headers=headers) as response:
        response.raise_for_status()
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and not resumed:  # the server sends the file from its start
            bar.update(-have)
        with partial.open("ab" if resumed else "wb") as out:
            for chunk in response.iter_bytes():
                out.write(chunk)
                out.flush()  # received bytes survive a kill
                bar.update(len(chunk))
                if out.tell() > file.size:  # more than announced, perhaps without end; the size check fails
                    return


def is_temporary(status: int) -> bool:
    """Whether a response's failure may pass, so that a later try or another server may succeed."""
    return status in (408, 429) or status >= 500


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.incomplete")


def _check_disk(files: Sequence[tuple[RemoteFile, Path]]) -> None:
    missing = [(file, target) for file, target in files if not target.is_file()]
    if not missing:
        return
    have = sum(_partial(target).stat().st_size for _, target in missing if _partial(target).is_file())
    needed = sum(file.size for file, _ in missing) - have
    folder = next(parent for parent in missing[0][1].parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(f"the download needs {needed / 1e9:.2f} GB in {folder}, where {free / 1e9:.2f} GB are free")
