"""The front of the API on a cluster: checks the key and the size of a request, and sends it to a model's replicas.

Serve's proxies take the connections, and this ASGI application runs behind those proxies. The front keeps nothing
between two requests, so that it may have replicas too; which replica of a model answers is chosen by Serve's router.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from server.api_errors import ApiError, TooLarge, Unavailable, error_body
from server.http.auth import OPEN_FILES, OPEN_PATHS, ApiKeys
from server.http.metrics import CONTENT_TYPE

from .bridge import Call, Head

KEPT = ("/v1/files", "/v1/ocr/jobs")  # paths of what stays between two requests, which one replica keeps: the desk
NO_DESK = "files and jobs are kept by one replica, which this application was started without; start it with --desk"

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]


class Replicas(Protocol):
    """The replicas of one model, or the desk."""

    def ask(self, call: Call) -> AsyncIterator[Head | bytes]:
        """Have one replica answer. Raises Unavailable when too many requests wait already."""


class Front:
    """An ASGI application. ``service`` runs it in a replica of Serve."""

    def __init__(
        self, models: Mapping[str, Replicas], keys: ApiKeys, max_body: int, metrics: Callable[[], Awaitable[bytes]],
        desk: Replicas | None,
    ) -> None:  # fmt: skip
        """models : by id; the first gets the requests that name no model. max_body : bytes. metrics : of all replicas.
        desk : keeps files and jobs; None where nobody does."""
        self._models, self._keys, self._max_body = models, keys, max_body
        self._metrics, self._desk = metrics, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or confirm a message of the ASGI lifespan."""
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        elif scope["type"] == "http":
            try:
                await self._answer(scope, receive, send)
            except ApiError as error:
                await _send_error(send, error)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].rstrip("/") or "/"
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if path in ("/health", "/v1/health"):
            await _send_json(send, 200, {"status": "ok"})
            return
        is_open = path == "/" or path in OPEN_PATHS or OPEN_FILES.fullmatch(path) is not None
        signed = path.startswith(KEPT[0]) and b"signature=" in scope["query_string"]  # the desk checks it
        if not (is_open or signed or scope["method"] == "OPTIONS") and not self._keys.knows(
            headers.get("authorization", ""), headers.get("x-api-key", "")
        ):
            raise ApiKeys.refusal()
        if path == "/metrics":
            await _send(send, Head(200, ((b"content-type", CONTENT_TYPE.encode()),)), await self._metrics())
            return
        call = await self._read(scope, receive, headers)
        if path == "/v1/models" and call.method in ("GET", "HEAD"):
            await _send_json(send, 200, await self._all_models(call))
            return
        started = False
        async with aclosing(self._replicas(path, call).ask(call)) as pieces:  # type: ignore[type-var]  # a generator
            async for piece in pieces:
                if isinstance(piece, Head):
                    started = True
                    await send({"type": "http.response.start", "status": piece.status, "headers": list(piece.headers)})
                else:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        if started:
            await send({"type": "http.response.body", "body": b""})

    async def _read(self, scope: Scope, receive: Receive, headers: Mapping[str, str]) -> Call:
        """The request with its body.

        Raises
        ------
        TooLarge
            above the limit: before the body is read where Content-Length says so, else while it is read.
        """
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_body:
            raise self._too_large(int(announced))
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_body:
                raise self._too_large(len(body))
        client = scope.get("client") or ("", 0)
        path = scope.get("raw_path") or scope["path"].encode()
        return Call(
            scope["method"], path.partition(b"?")[0], scope["query_string"], tuple(scope["headers"]), bytes(body),
            str(client[0]),
        )  # fmt: skip

    def _too_large(self, size: int) -> TooLarge:
        return TooLarge(f"the body has {size} bytes; the limit is {self._max_body >> 20} MiB (--max-body-mb)")

    def _replicas(self, path: str, call: Call) -> Replicas:
        """Who answers the request: the desk, the replicas of the model that it names, or those of the first model."""
        first, *_ = self._models.values()
        if path.startswith(KEPT) or (path == "/v1/ocr" and b'"file_id"' in call.body):
            if self._desk is None:
                raise ApiError(501, NO_DESK, code="not_implemented")
            return self._desk
        if path.startswith("/v1/models/"):
            return self._models.get(path.removeprefix("/v1/models/"), first)
        if call.method == "POST" and len(self._models) > 1:
            return self._models.get(_model_in(call.body), first)
        return first

    async def _all_models(self, call: Call) -> dict[str, Any]:
        """The list of models: each entry as a replica of that model says it."""
        data: list[Any] = []
        for model, replicas in self._models.items():
            content = b"".join([piece async for piece in replicas.ask(call) if isinstance(piece, bytes)])
            data += [entry for entry in json.loads(content or b"{}").get("data", ()) if entry.get("id") == model]
        return {"object": "list", "data": data}


def _model_in(body: bytes) -> str:
    """The model that a body names; "" for a body that is not JSON, which the replica refuses."""
    try:
        content = json.loads(body)
    except ValueError:
        return ""
    name = content.get("model") if isinstance(content, dict) else None
    return name if isinstance(name, str) else ""


async def _send(send: Send, head: Head, body: bytes) -> None:
    await send({"type": "http.response.start", "status": head.status, "headers": list(head.headers)})
    await send({"type": "http.response.body", "body": body})


async def _send_json(send: Send, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
    more = tuple((name.lower().encode(), value.encode()) for name, value in (headers or {}).items())
    await _send(send, Head(status, ((b"content-type", b"application/json"), *more)), json.dumps(content).encode())


async def _send_error(send: Send, error: ApiError) -> None:
    body = error_body(error.status_code, error.message, error.param, error.error_code)
    await _send_json(send, error.status_code, body, dict(error.headers or {}))


def too_many() -> Unavailable:
    """The error for a request that finds Serve's queue full."""
    return Unavailable("the queues of all engines are full; try again later", code="queue_full")
