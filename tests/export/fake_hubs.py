"""A server on 127.0.0.1 that answers as the Hugging Face hub and ModelScope do, and misbehaves on request.

The Hugging Face half was written against what huggingface_hub 2.4 asks and reads: large files are LFS files, whose
``/resolve/`` answers with ``X-Linked-Size`` and ``X-Linked-Etag`` and a redirect to another host (here: another port),
where the access token must not go. The ModelScope half is as described in ``export/modelscope.py``.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "1f2e3d4c5b6a79880716253443526170f0e1d2c3"
OLD_COMMIT = "00112233445566778899aabbccddeeff00112233"


@dataclass
class Asked:
    """One request that reached the server."""

    method: str
    path: str
    headers: dict[str, str]
    on_cdn: bool = False

    @property
    def range_start(self) -> int:
        found = re.match(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(found[1]) if found else 0


@dataclass
class FakeHubs:
    """What the two hubs have, what they do wrong, and what they were asked."""

    repo: str = "acme/ocr"
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> path -> content
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "master": COMMIT})
    token: str | None = None  # asked for by Hugging Face when set
    gated: bool = False  # the listing is open, the files are not
    status: int | None = None  # Hugging Face answers everything with this status
    modelscope_status: int | None = None
    cut_after: int | None = None  # bytes of a body after which the connection drops
    cuts: int = 10**9  # how often that happens
    stall_after: int | None = None  # bytes of a body after which nothing more comes, until `released`
    released: threading.Event = field(default_factory=threading.Event)
    damage: int = 0  # how many bodies of large files arrive with a byte changed
    surplus: int = 0  # bytes that follow those of a large file
    hung_up: int = 0  # clients that did not take all of them
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self) -> FakeHubs:
        self._servers = [self._serve(on_cdn) for on_cdn in (False, True)]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _serve(self, on_cdn: bool) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hubs": self, "on_cdn": on_cdn})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def bodies(self, path: str) -> list[Asked]:
        """The requests for a file's content."""
        return [asked for asked in self.asked if asked.method == "GET" and asked.path.endswith(f"/{path}")]


def is_large(path: str) -> bool:
    """Whether the hub keeps the file in LFS."""
    return path.endswith(".safetensors")


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hubs: FakeHubs
    on_cdn: bool

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hubs, url = self.hubs, urlsplit(self.path)
        path = unquote(url.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        hubs.asked.append(Asked(self.command, path, headers, self.on_cdn))
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if self.on_cdn:
            digest, name = path.strip("/").split("/")
            content = next(c for files in hubs.revisions.values() for c in files.values() if sha256(c) == digest)
            self._send_file(name, content)
        elif path.startswith("/api/v1/models/") or path.startswith("/models/"):
            self._modelscope(path, query)
        else:
            self._huggingface(path)

    # Hugging Face

    def _huggingface(self, path: str) -> None:
        hubs = self.hubs
        if hubs.status:
            return self._send(hubs.status, b"out of order")
        authorised = hubs.token is None or self.headers.get("Authorization") == f"Bearer {hubs.token}"
        if info := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+)|/tree/([^/]+))?", path):
            repo, revision, tree = info[1], info[2] or info[3] or "main", info[3]
            if repo != hubs.repo or (not authorised and not hubs.gated):
                code = 404 if self.headers.get("Authorization") else 401  # as the hub does
                return self._refuse(code, "RepoNotFound")
            commit = hubs.branches.get(revision, revision)
            if commit not in hubs.revisions:
                return self._refuse(404, "RevisionNotFound")
            listing = self._tree(commit) if tree else self._info(commit)
            return self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not found:
            return self._send(404, b"")
        if not authorised:
            return self._refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        commit, name = found[2], found[3]
        content = hubs.revisions.get(commit, {}).get(name)
        if content is None:
            return self._refuse(404, "EntryNotFound")
        if not is_large(name):
            return self._send_file(name, content, {"ETag": f'"{git_id(content)}"', "X-Repo-Commit": commit})
        digest = sha256(content)
        headers = {
            "Location": f"{hubs.cdn_url}/{digest}/{name}",
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{digest}"',
        }
        return self._send(302, b"", headers)

    def _info(self, commit: str) -> dict[str, Any]:
        siblings = []
        for name, content in self.hubs.revisions[commit].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_id(content)}
            if is_large(name):
                entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"id": self.hubs.repo, "modelId": self.hubs.repo, "sha": commit, "siblings": siblings, "tags": []}

    def _tree(self, commit: str) -> list[dict[str, Any]]:
        entries = []
        for name, content in self.hubs.revisions[commit].items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
            if is_large(name):
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries

    # ModelScope

    def _modelscope(self, path: str, query: dict[str, str]) -> None:
        hubs = self.hubs
        if hubs.modelscope_status:
            return self._send(hubs.modelscope_status, b"out of order")
        if path.startswith("/models/"):
            found = re.fullmatch(r"/models/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            content = hubs.revisions.get(found[2], {}).get(found[3]) if found and found[1] == hubs.repo else None
            return self._send(404, b"") if content is None else self._send_file(found[3], content)
        if path != f"/api/v1/models/{hubs.repo}/repo/files":
            return self._send(404, b'{"Code": 10010205001, "Data": {}, "Success": false}')
        assert query["Recursive"] == "true"
        commit = hubs.branches.get(query["Revision"], query["Revision"])
        files = [
            {"Path": name, "Type": "blob", "Size": len(content), "Sha256": sha256(content), "Revision": COMMIT}
            for name, content in hubs.revisions.get(commit, {}).items()
        ]
        files.append({"Path": "assets", "Type": "tree", "Size": 0, "Sha256": "", "Revision": COMMIT})
        newest = {"Id": "", "ShortId": commit[:8]}
        data = {"Files": files, "LatestCommitter": newest} if commit in hubs.revisions else {"Files": None}
        return self._send(200, json.dumps({"Code": 200, "Data": data, "Success": True}).encode())

    # both

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, json.dumps({"error": code}).encode(), {"X-Error-Code": code})

    def _send_file(self, name: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        headers, status, start = dict(headers or {}), 200, 0
        if wish := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, start = 206, int(wish[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body, hubs = content[start:], self.hubs
        if self.command == "GET" and is_large(name):
            if hubs.damage:
                hubs.damage -= 1
                body = body[:-1] + bytes([body[-1] ^ 1])
            if hubs.surplus:
                try:
                    return self._send(status, body + bytes(hubs.surplus), headers)
                except OSError:
                    hubs.hung_up += 1
                    self.close_connection = True
                    return None
            if hubs.stall_after is not None:
                return self._send(status, body, headers, cut=hubs.stall_after, stall=True)
            if hubs.cut_after is not None and hubs.cuts > 0 and len(body) > hubs.cut_after:
                hubs.cuts -= 1
                return self._send(status, body, headers, cut=hubs.cut_after)
        return self._send(status, body, headers)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
        stall: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            if stall:
                self.hubs.released.wait(60)
            self.close_connection = True  # the rest of the promised length never comes
