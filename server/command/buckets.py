"""Documents and results behind addresses: ``s3://``, ``gs://``, ``az://`` and others by fsspec; ``https://`` by us.

Addresses come from the program's own user, so private ones are allowed, unlike in requests to the server. An object
appears whole when its upload ends, like a file on a disk by a rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from models.model_errors import InvalidInput
from runtime.documents import Document, How, Stop, Workers, open_document
from server.api_errors import BadRequest, TooLarge
from server.fetch import Fetcher

from .command_errors import UsageError
from .source import SUFFIXES, DocumentSource

INSTALL = {
    "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
    "hf": "huggingface_hub", "sftp": "paramiko", "smb": "smbprotocol", "hdfs": "pyarrow",
}  # fmt: skip
_S3 = (
    "its name, the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID) and their rights, the region, and the endpoint "
    "(AWS_ENDPOINT_URL)"
)
_GCS = "its name, and the credentials (GOOGLE_APPLICATION_CREDENTIALS) and their rights"
_AZURE = (
    "its name, the account (AZURE_STORAGE_ACCOUNT_NAME), and its key (AZURE_STORAGE_ACCOUNT_KEY, "
    "AZURE_STORAGE_CONNECTION_STRING) or the rights of who is logged in"
)
TO_CHECK = {
    "s3": _S3, "s3a": _S3, "gs": _GCS, "gcs": _GCS, "az": _AZURE, "abfs": _AZURE, "abfss": _AZURE,
    "http": "the address, which must be open to anybody", "https": "the address, which must be open to anybody",
}  # fmt: skip
_CONTAINER = {"az": "container", "abfs": "container", "abfss": "container"}  # all other kinds of address have buckets
HEARTBEAT = 10.0  # seconds between the marks by which a run says that it writes to a bucket
SILENCE = 25.0  # seconds without a mark, after which the run counts as gone
FLUSH_SECONDS = 5.0  # seconds for which lines of pages may wait: the pages' parts say the same and more
SEGMENT = 256 << 10  # bytes of a manifest's segment, which every flush writes anew; then another object begins
LARGEST = 4 << 30  # bytes of a document behind https://
FETCH_SECONDS = 600.0

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_WEB = ("http", "https")


def is_url(text: str) -> bool:
    """Whether the text is an address rather than a path."""
    return _URL.match(text) is not None


def local_path(text: str) -> Path | None:
    """The path in a ``file://`` address; None for other texts."""
    parts = urlsplit(text)
    return Path(url2pathname(parts.path)) if parts.scheme.lower() == "file" else None


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path within.

    Raises
    ------
    UsageError
        when a package is missing, the kind of address is unknown, or the store cannot be opened; the message says what
        to install or to check.
    """
    scheme = _scheme(url)
    try:
        import fsspec
    except ImportError:
        raise UsageError(f"{url}: addresses need fsspec: pip install 'ocr-onnx[addresses]'{_and(scheme)}") from None
    package = INSTALL.get(scheme)
    if scheme not in fsspec.available_protocols() and package is None:
        raise UsageError(f"{url}: fsspec knows no addresses of the kind {scheme}://; write {', '.join(INSTALL)}")
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        remedy = f"pip install {package}" if package else str(error)
        raise UsageError(f"{url}: {scheme}:// needs another package: {remedy}") from error
    except Exception as error:  # every file system has errors of its own
        if scheme not in fsspec.available_protocols():  # a kind that fsspec knows only with its package
            raise UsageError(f"{url}: {scheme}:// needs another package: pip install {package}") from error
        raise UsageError(f"{url} cannot be asked: {_told(error)}{_advice(url)}") from error
    return system, str(path)


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _and(scheme: str) -> str:
    return f" {INSTALL[scheme]}" if scheme in INSTALL else ""


def _advice(url: str) -> str:
    """Advice to add to an error's reason."""
    return f"; check {TO_CHECK[_scheme(url)]}" if _scheme(url) in TO_CHECK else "; check the address"


@dataclass(frozen=True)
class RemoteSource(DocumentSource):
    """One document behind an address."""

    url: str = ""
    version: str = ""  # the store's version of the object; "": the content decides

    @property
    def name(self) -> str:
        return self.url

    @property
    def fingerprint(self) -> str:
        return self.version or hashlib.sha256(self.content()).hexdigest()

    def open(self, how: How, workers: Workers, stop: Stop) -> Document:
        """See ``Source.open``. Every call fetches the content into memory."""
        return open_document(self.content(), name=self.url, workers=workers, stop=stop, **vars(how))

    def original(self) -> Path | bytes:
        return self.content()

    def content(self) -> bytes:
        """The whole content.

        Raises
        ------
        InvalidInput
            when the document cannot be fetched.
        """
        if _scheme(self.url) in _WEB:
            try:
                return Fetcher("any", LARGEST, FETCH_SECONDS).fetch(self.url)
            except (BadRequest, TooLarge) as error:
                raise InvalidInput(f"{self.url} cannot be fetched: {error.message}{_advice(self.url)}") from error
        system, path = file_system(self.url)
        try:
            return bytes(system.cat_file(path))
        except Exception as error:  # every file system has errors of its own
            raise InvalidInput(f"{self.url} cannot be fetched: {_told(error)}{_advice(self.url)}") from error


def find(url: str, results: str | None) -> Iterator[RemoteSource]:
    """The documents that an address names: one document, all below a folder, or all that match a pattern.

    results : address of a folder to leave out.

    Raises
    ------
    UsageError
        when nothing is there, or the store cannot be asked.
    """
    if _scheme(url) in _WEB:
        name = PurePosixPath(url.partition("://")[2].partition("?")[0]).name or "index"
        yield RemoteSource(None, PurePosixPath(name), url=url)
        return
    system, path = file_system(url)
    try:
        pattern = any(letter in path for letter in "*?[")
        found = system.glob(path, detail=True) if pattern else system.find(path, detail=True)
    except Exception as error:  # every file system has errors of its own
        raise UsageError(f"{url} cannot be listed: {_told(error)}{_advice(url)}") from error
    if not found:
        _look_for_bucket(system, url, path)
    left_out = _path_of(system, results) if results is not None else None
    fixed = path.split("*")[0].split("?")[0].split("[")[0].rpartition("/")[0] if pattern else path
    alone = list(found) == [path]
    for name, info in sorted(found.items()):
        if info.get("type") == "directory" or (left_out and name.startswith(left_out + "/")):
            continue
        relative = PurePosixPath(PurePosixPath(name).name if alone else name.removeprefix(fixed).lstrip("/"))
        if not alone and (
            any(part.startswith(".") for part in relative.parts) or relative.suffix.lower() not in SUFFIXES
        ):
            continue
        yield RemoteSource(None, relative, url=system.unstrip_protocol(name), version=_version(system, name, info))


def _look_for_bucket(system: Any, url: str, path: str) -> None:
    """Raise for a missing bucket, which some stores list as if it were empty.

    Raises
    ------
    UsageError
        when there is no such bucket, or the store cannot be asked.
    """
    scheme, bucket = _scheme(url), path.lstrip("/").partition("/")[0]
    if scheme not in TO_CHECK:
        return
    try:
        system.info(bucket)
    except FileNotFoundError as error:
        kind = _CONTAINER.get(scheme, "bucket")
        raise UsageError(f"{url}: there is no {kind} {bucket!r}: {_told(error)}{_advice(url)}") from error
    except Exception as error:  # every file system has errors of its own
        raise UsageError(
            f"{url}: no document here, and {bucket!r} cannot be asked: {_told(error)}{_advice(url)}"
        ) from error


def _version(system: Any, name: str, info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created"):
        if info.get(key):
            return f"{info.get('size')}-{info[key]}".replace('"', "")
    return str(system.ukey(name))


def _path_of(system: Any, url: str) -> str:
    return str(system._strip_protocol(url)).rstrip("/")


class Bucket:
    """See ``stores.Store``: a folder behind an address.

    Objects cannot be appended to, so the manifest grows in segments, which become one object at the end. The lock that
    keeps other runs out is an object that is written anew every few seconds.
    """

    def __init__(self, url: str, manifest: str, parts: str) -> None:
        self._url = url.rstrip("/")
        self._system, path = file_system(self._url)
        self._root, self._manifest, self._parts = path.rstrip("/"), manifest, parts
        self._me = json.dumps({"run": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()})
        self._beats = 0
        self._left = threading.Event()
        self._written: list[str] = []  # lines of the growing segment
        self._size = self._segment = 0
        self._flushed = time.monotonic()
        self._log = threading.Lock()
        self._temporary = tempfile.TemporaryDirectory(prefix="ocr-onnx-")
        self._mine: dict[str, bytes] = {}  # parts written by this run, until their document is whole

    def where(self, name: str) -> str:
        return f"{self._url}/{name}"

    def take(self) -> None:
        lock = f"{self._parts}/lock"
        try:
            if (before := self._peek(lock)) is not None:
                until = time.monotonic() + SILENCE
                while time.monotonic() < until:
                    time.sleep(0.5)
                    now = self._peek(lock)
                    if now is None:
                        break
                    if now != before:
                        raise UsageError(f"another run is writing to {self._url}; wait for it, or name another folder")
            self._beat()
        except OSError as error:
            raise UsageError(
                f"{self._url} cannot be written: {error}{_advice(self._url)}, or name another folder with -o"
            ) from error
        threading.Thread(target=self._keep_beating, name="bucket", daemon=True).start()

    def leave(self) -> None:
        self._left.set()
        try:
            with contextlib.suppress(OSError):  # a write that failed has been reported
                self._join_manifest()
            with contextlib.suppress(OSError):
                self.remove(f"{self._parts}/lock")
        finally:
            self._temporary.cleanup()

    def exists(self, name: str) -> bool:
        with _asked():
            return bool(self._system.exists(self._path(name)))

    def names(self, folder: str) -> Iterable[str]:
        with _asked():
            try:
                return [
                    path.rstrip("/").rpartition("/")[2] for path in self._system.ls(self._path(folder), detail=False)
                ]
            except FileNotFoundError:
                return ()

    def read(self, name: str) -> bytes:
        if name in self._mine:
            return self._mine[name]
        with _asked():
            return bytes(self._system.cat_file(self._path(name)))

    @contextlib.contextmanager
    def publishing(self, name: str) -> Iterator[Path]:
        handle, temporary = tempfile.mkstemp(dir=self._temporary.name)
        os.close(handle)
        path = Path(temporary)
        try:
            yield path
            with _asked():
                self._system.put_file(str(path), self._path(name))
            if name.startswith(f"{self._parts}/"):
                self._mine[name] = path.read_bytes()
        finally:
            path.unlink(missing_ok=True)

    def remove(self, folder: str) -> None:
        for name in [name for name in self._mine if name.startswith(f"{folder}/")]:
            del self._mine[name]
        with _asked(), contextlib.suppress(FileNotFoundError):
            self._system.rm(self._path(folder), recursive=True)

    def lines(self) -> Iterator[str]:
        for name in [self._manifest, *self._segments()]:
            with contextlib.suppress(FileNotFoundError):
                yield from self.read(name).decode("utf-8", "replace").splitlines()

    def begin(self) -> None:
        self._join_manifest()  # segments of a run that was killed

    def add(self, line: str, *, durable: bool) -> None:
        with self._log:
            self._written.append(line)
            self._size += len(line)
            if durable or time.monotonic() > self._flushed + FLUSH_SECONDS:
                self._flush()

    def _flush(self) -> None:
        self._put(f"{self._parts}/log/{self._segment:08d}.jsonl", self._written)
        self._flushed = time.monotonic()
        if self._size > SEGMENT:
            self._segment, self._size, self._written = self._segment + 1, 0, []

    def _join_manifest(self) -> None:
        """Append the segments to the manifest."""
        with self._log:
            if self._written:
                self._flush()
            if self._segments():
                self._put(self._manifest, list(self.lines()))
                self.remove(f"{self._parts}/log")
            self._segment, self._size, self._written = 0, 0, []

    def _segments(self) -> list[str]:
        return [f"{self._parts}/log/{name}" for name in sorted(self.names(f"{self._parts}/log")) if name]

    def _put(self, name: str, lines: list[str]) -> None:
        content = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
        with _asked():
            self._system.pipe_file(self._path(name), content)

    def _peek(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def _beat(self) -> None:
        self._beats += 1
        self._put(f"{self._parts}/lock", [self._me, str(self._beats)])

    def _keep_beating(self) -> None:
        while not self._left.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # the next write reports the error
                self._beat()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


@contextlib.contextmanager
def _asked() -> Iterator[None]:
    """Turn errors of any file system into OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(_told(error)) from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
