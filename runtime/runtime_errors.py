"""Errors of the runtime. What a caller did wrong is ``models.model_errors.InvalidInput`` instead."""


class RuntimeUnavailable(Exception):
    """ONNX Runtime or the requested execution provider is missing; the message has the install line."""


class QueueFull(Exception):
    """The bounded request queue has no place left; try again after ``retry_after`` seconds."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class GenerationFailed(Exception):
    """The engine failed on this request, and goes on with the others; the message has the cause."""


class EngineClosed(Exception):
    """The model was closed (or its engine has failed) while the request was waiting or running."""


class ModelUnavailable(Exception):
    """A model that cannot be exported or loaded; the message says what to do.

    permanent : retrying is useless until somebody changes something on the server.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent
