"""Errors that end as HTTP errors in OpenAI's form: ``{"error": {message, type, param, code}}``.

Plain exceptions: no web framework is needed to raise, catch or describe one.
"""

from __future__ import annotations

from typing import Any

from models.config import UnknownModel
from models.model_errors import ConfigError, ContextExceeded, InvalidInput, InvalidSetting, ManifestError
from runtime.runtime_errors import EngineClosed, ModelUnavailable, QueueFull

from .reasons import without_paths

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error with OpenAI's fields."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        headers = dict(headers or {})
        if retry_after is not None:
            headers["Retry-After"] = str(max(1, round(retry_after)))
        super().__init__(message)
        self.status_code = status
        self.message = message
        self.headers = headers
        self.param = param
        self.error_code = code


class BadRequest(ApiError):
    """The client's request cannot be carried out."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(400, message, param=param, code=code or "invalid_request")


class TooLarge(ApiError):
    """A body, an image or a number of images beyond the limit."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "too_large") -> None:
        super().__init__(413, message, param=param, code=code)


class Unavailable(ApiError):
    """The request cannot be served now; Retry-After says when to try again."""

    def __init__(self, message: str, *, code: str = "unavailable", retry_after: float = 10) -> None:
        super().__init__(503, message, code=code, retry_after=retry_after)


class ClientGone(Exception):
    """The client hung up while its request was waiting or running."""


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON document of an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def translate(error: Exception) -> ApiError | None:
    """The HTTP error for an expected exception of other packages; None for an unexpected one."""
    match error:
        case ApiError():
            return error
        case InvalidSetting():
            return BadRequest(str(error), param=error.field)
        case ContextExceeded():
            return BadRequest(str(error), code="context_length_exceeded")
        case InvalidInput():
            return BadRequest(str(error))
        case UnknownModel():
            return ApiError(404, str(error), param="model", code="model_not_found")
        case ConfigError():
            return ApiError(404, without_paths(str(error)), param="model", code="model_not_supported")
        case QueueFull():
            return Unavailable(str(error), code="queue_full", retry_after=error.retry_after)
        case ManifestError() | ModelUnavailable(permanent=True):
            # Not a 5xx, after which clients retry by themselves: a retry would get the same error.
            return ApiError(404, without_paths(str(error)), param="model", code="model_unavailable")
        case ModelUnavailable():
            return Unavailable(without_paths(str(error)), code="model_unavailable", retry_after=60)
        case EngineClosed():
            return Unavailable(f"the model stopped: {error}; try again", code="engine_closed", retry_after=5)
    return None


def internal_error() -> ApiError:
    """The error for clients after an unexpected exception."""
    return ApiError(500, "internal error; the server's log has the details", code="internal_error")
