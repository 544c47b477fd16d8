"""/v1/files: documents that a client uploads for OCR, kept in memory for an hour.

A file belongs to the API key that uploaded it. A signed URL, which Mistral's clients request between upload and OCR,
opens the file without a key; in a request to /v1/ocr such a URL is looked up and never fetched.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import falcon

from server.api_errors import ApiError, BadRequest, TooLarge, Unavailable

from ..auth import owner_of

KEEP_SECONDS = 3600.0
UPLOADS = 4  # uploads read at once
MAX_FILES = 1000
_MAX_WORD = 200  # characters of a file name or a purpose


@dataclass(frozen=True)
class StoredFile:
    """One upload."""

    id: str
    owner: str
    name: str
    purpose: str
    content: bytes
    created: float = field(default_factory=time.time)

    @property
    def expires(self) -> float:
        return self.created + KEEP_SECONDS

    def describe(self) -> dict[str, Any]:
        """The file's description, in Mistral's and OpenAI's form."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "size_bytes": len(self.content),
            "created_at": int(self.created),
            "expires_at": int(self.expires),
            "filename": self.name,
            "purpose": self.purpose,
            "sample_type": "ocr_input",
            "source": "upload",
            "status": "processed",
            "deleted": False,
        }


class FileStore:
    """The uploads, within a limit of bytes."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._max_bytes, self._clock = max_bytes, clock
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()  # guards the files
        self._files: dict[str, StoredFile] = {}

    def add(self, owner: str, name: str, purpose: str, content: bytes) -> StoredFile:
        """Keep a file.

        Raises
        ------
        Unavailable
            when other files take all the room.
        """
        file = StoredFile(f"file-{secrets.token_hex(16)}", owner, name, purpose, content, self._clock())
        with self._lock:
            self._forget_old()
            held = sum(len(one.content) for one in self._files.values())
            if held + len(content) > self._max_bytes or len(self._files) >= MAX_FILES:
                raise Unavailable(
                    f"the uploaded files take {held >> 20} of {self._max_bytes >> 20} MiB (--max-files-mb); delete "
                    "some, or wait until they expire", code="files_full", retry_after=60,
                )  # fmt: skip
            self._files[file.id] = file
        return file

    def get(self, file_id: str, owner: str) -> StoredFile:
        """A file of an owner.

        Raises
        ------
        ApiError
            with status 404 when there is none.
        """
        with self._lock:
            self._forget_old()
            file = self._files.get(file_id)
        if file is None or file.owner != owner:
            raise ApiError(
                404, f"there is no file {file_id[:80]!r}; files are kept for an hour", param="file_id",
                code="file_not_found",
            )  # fmt: skip
        return file

    def of(self, owner: str) -> list[StoredFile]:
        """All files of an owner, the latest first."""
        with self._lock:
            self._forget_old()
            return sorted(
                (file for file in self._files.values() if file.owner == owner), key=lambda file: -file.created
            )

    def delete(self, file_id: str, owner: str) -> None:
        """Forget a file.

        Raises
        ------
        ApiError
            with status 404 when there is none.
        """
        self.get(file_id, owner)
        with self._lock:
            self._files.pop(file_id, None)

    def sign(self, file: StoredFile, seconds: float) -> dict[str, str]:
        """The query string of a signed URL."""
        expires = str(int(min(file.expires, self._clock() + seconds)))
        return {"expires": expires, "signature": self._signature(file.id, expires)}

    def signed(self, path: str, query: str) -> StoredFile | None:
        """The file that a signed URL opens, whatever host it names; None for any other URL."""
        file_id, _, rest = path.rpartition("/v1/files/")[2].partition("/")
        given = {name: values[0] for name, values in parse_qs(query).items()}
        expires, signature = given.get("expires", ""), given.get("signature", "")
        if rest != "content" or not hmac.compare_digest(self._signature(file_id, expires).encode(), signature.encode()):
            return None
        with self._lock:
            self._forget_old()
            return self._files.get(file_id) if float(expires) > self._clock() else None

    def signed_url(self, url: str) -> StoredFile | None:
        """See ``signed``."""
        try:
            parts = urlsplit(url)
        except ValueError:
            return None
        return self.signed(parts.path, parts.query) if parts.scheme in ("http", "https") else None

    def _signature(self, file_id: str, expires: str) -> str:
        return hmac.new(self._secret, f"{file_id} {expires}".encode(), hashlib.sha256).hexdigest()

    def _forget_old(self) -> None:
        now = self._clock()
        for file in [file for file in self._files.values() if file.expires <= now]:
            del self._files[file.id]


class Files:
    """Uploads and lists files."""

    def __init__(self, store: FileStore, max_bytes: int) -> None:
        self._store, self._max_bytes = store, max_bytes
        self._uploading = threading.Semaphore(UPLOADS)

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Take a multipart form with ``file`` and ``purpose``."""
        if (req.content_length or 0) > self._max_bytes + (1 << 20):
            raise self._too_large()
        if not (req.content_type or "").lower().startswith("multipart/form-data"):
            raise ApiError(
                415, "a file is uploaded as multipart/form-data with the fields file and purpose",
                code="unsupported_media_type",
            )  # fmt: skip
        with self._uploading:
            name, purpose, content = self._read(req)
            resp.media = self._store.add(owner_of(req), name, purpose, content).describe()

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        files = [file.describe() for file in self._store.of(owner_of(req))]
        resp.media = {"object": "list", "data": files, "total": len(files), "has_more": False}

    def _read(self, req: falcon.Request) -> tuple[str, str, bytes]:
        name, purpose, content = "", "ocr", None
        for part in req.get_media():
            if part.name == "file":
                name = (part.filename or "file")[:_MAX_WORD]
                content = part.stream.read(self._max_bytes + 1)
                if len(content) > self._max_bytes:
                    raise self._too_large()
            elif part.name == "purpose":
                purpose = part.stream.read(_MAX_WORD).decode("utf-8", "replace")
        if not content:
            raise BadRequest("the form has no field file with content", param="file")
        return name, purpose, content

    def _too_large(self) -> TooLarge:
        return TooLarge(f"a file is larger than {self._max_bytes >> 20} MiB (--max-image-mb)", param="file")


class File:
    """One file: its description and its deletion."""

    def __init__(self, store: FileStore) -> None:
        self._store = store

    def on_get(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        resp.media = self._store.get(file_id, owner_of(req)).describe()

    def on_delete(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        self._store.delete(file_id, owner_of(req))
        resp.media = {"id": file_id, "object": "file", "deleted": True}


class FileContent:
    """A file's bytes, for the owner or by a signed URL."""

    def __init__(self, store: FileStore) -> None:
        self._store = store

    def on_get(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        file = self._store.signed(req.path, req.query_string) or self._store.get(file_id, owner_of(req))
        resp.content_type = "application/octet-stream"
        # A browser must not show an upload as a page of this server.
        resp.set_headers({"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"})
        resp.data = file.content


class SignedUrl:
    """An address that opens the file without a key, for some hours or until the file is gone."""

    def __init__(self, store: FileStore) -> None:
        self._store = store

    def on_get(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        file = self._store.get(file_id, owner_of(req))
        hours = req.get_param_as_int("expiry", min_value=1, default=24)
        query = urlencode(self._store.sign(file, hours * 3600.0))
        resp.media = {"url": f"{req.forwarded_prefix}/v1/files/{file.id}/content?{query}"}
