"""Lets Falcon answer every error of the application in OpenAI's form, see ``server.api_errors``."""

from __future__ import annotations

import json
import logging
from typing import Any

import falcon

from server.api_errors import ApiError, ClientGone, error_body, internal_error, translate

log = logging.getLogger(__name__)


def install(app: falcon.App[Any, Any]) -> None:
    """Make every error of the application answer in OpenAI's shape."""
    app.set_error_serializer(_serialize)
    app.add_error_handler(Exception, _handle)
    app.add_error_handler(ClientGone, _handle_gone)


class _Answer(falcon.HTTPError):
    """An ``ApiError`` on its way through Falcon."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(falcon.code_to_http_status(error.status_code), title=error.message, headers=error.headers)
        self.error = error


def _serialize(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
    status = error.status_code
    if isinstance(error, _Answer):
        body = error_body(status, error.error.message, error.error.param, error.error.error_code)
    else:
        reason = error.description or error.title
        if status == 404:
            reason = f"there is nothing at {req.method} {req.path[:200]}; see /openapi.json for what there is"
        elif status == 405:
            reason = f"{req.path} does not take {req.method}; it takes {resp.get_header('Allow') or 'other methods'}"
        body = error_body(status, reason, code=_code(status))
    req.context["reason"] = body["error"]["message"]  # for the log
    resp.content_type = falcon.MEDIA_JSON
    resp.data = json.dumps(body, ensure_ascii=False).encode()


def _code(status: int) -> str:
    return str(falcon.code_to_http_status(status)).partition(" ")[2].lower().replace(" ", "_")


def _handle(req: falcon.Request, resp: falcon.Response, error: Exception, params: dict[str, Any]) -> None:
    known = translate(error)
    if known is not None:
        raise _Answer(known)
    # The traceback holds code and file names, never the user's document.
    log.exception("unexpected error in %s %r", req.method, req.path, exc_info=error)
    raise _Answer(internal_error()) from error


def _handle_gone(req: falcon.Request, resp: falcon.Response, error: Exception, params: dict[str, Any]) -> None:
    # 499: the client is gone, but the log and the metrics count it.
    raise _Answer(ApiError(499, "the client closed the connection", code="client_closed_request"))
