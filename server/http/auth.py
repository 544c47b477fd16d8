"""API keys: everything but the health routes needs one when any is set."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import falcon

from models.model_errors import ConfigError
from server.api_errors import ApiError
from server.options import KEYS_VARIABLE

OPEN_PATHS = frozenset({"/health", "/v1/health", "/ready"})
OPEN_FILES = re.compile(r"/web/[a-z-]+\.(?:js|css|svg)")  # the page at /, where a browser's user types the key


class ApiKeys:
    """Falcon middleware that lets only bearers of a key through."""

    def __init__(self, keys: Sequence[str], opens: Callable[[falcon.Request], bool] = lambda req: False) -> None:
        """opens : whether a request needs no key, as with the signed URL of a file."""
        self._opens = opens
        # Digests have one length, so comparing them does not reveal a key's length.
        self._digests = [_digest(key) for key in keys]

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Refuse requests without a valid key.

        Raises
        ------
        ApiError
            with status 401.
        """
        # A browser sends OPTIONS without a key before the request with a key.
        if not self._digests or req.method == "OPTIONS" or _is_open(req.path):
            return
        if self._opens(req):
            return
        if not self.knows(*_headers(req)):
            raise self.refusal()
        req.context["client"] = owner_of(req)  # the client whose share of the model the request takes

    def knows(self, authorization: str, x_api_key: str = "") -> bool:
        """Whether one of the two headers holds a valid key; always, where no key is set."""
        digest = _digest(_key(authorization, x_api_key))
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all keys, in constant time
        return not matches or any(matches)

    @staticmethod
    def refusal() -> ApiError:
        """The answer to a request without a valid key."""
        return ApiError(
            401,
            "a valid API key is needed, as the header Authorization: Bearer KEY or X-Api-Key: KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def owner_of(req: falcon.Request) -> str:
    """The owner of files and jobs: one for each key, and one for all requests without a key."""
    return _digest(_key(*_headers(req))).hex()


def _headers(req: falcon.Request) -> tuple[str, str]:
    return req.get_header("Authorization") or "", req.get_header("X-Api-Key") or ""


def _key(authorization: str, x_api_key: str) -> str:
    scheme, _, given = authorization.partition(" ")
    bearer = given.strip() if scheme.lower() in ("bearer", "token") else ""  # PaddleX's clients say token
    return bearer or x_api_key.strip()


def _is_open(path: str) -> bool:
    return path == "/" or path.rstrip("/") in OPEN_PATHS or OPEN_FILES.fullmatch(path) is not None


def extra_keys(file: Path | None) -> list[str]:
    """Keys from the environment variable and from a file with one key a line.

    Raises
    ------
    ConfigError
        when the file cannot be read, or holds no key.
    """
    keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",")]
    if file is not None:
        try:
            lines = [line.strip() for line in file.expanduser().read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the API key file {file} cannot be read: {error}") from error
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            # An empty file would mean an open server, against its owner's wish.
            raise ConfigError(f"the API key file {file} holds no key; write one on a line of its own")
        keys += found
    return [key for key in keys if key]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
