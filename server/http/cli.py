"""The command line: ``ocr-onnx-serve``."""

from __future__ import annotations

import ipaddress
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from models.arguments import read_config
from models.model_errors import InvalidInput, ModelError
from runtime.library import memory
from runtime.runtime_errors import RuntimeUnavailable
from server import flags
from server.command.command_errors import CommandFailed, UsageError
from server.options import KEYS_VARIABLE, ServerOptions
from server.ray import serving
from server.streams import have_streams

from . import logs
from .app import Application, application_of
from .arguments import build_parser, options_of
from .listener import HttpServer

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal. Returns 0, or 1 after an error that was explained on standard error."""
    have_streams()
    parser = build_parser()
    return serve(vars(parser.parse_args(argv)), parser.error)


def serve(given: dict[str, Any], usage_error: Callable[[str], NoReturn]) -> int:
    """Serve until a signal; see ``main``. ``given``: the parsed flags."""
    memory.settle_malloc()
    try:
        inference = flags.given_settings(given)
    except InvalidInput as error:
        usage_error(str(error))
    logs.configure(given.get("log_format", "text"))
    if "ray" in given:
        try:
            return serving.run(given)
        except (ModelError, RuntimeUnavailable, UsageError, CommandFailed) as error:
            return _explain(error)
    try:
        config = read_config(given)
        options = options_of(config, given, inference)
        logs.configure(options.log_format, options.log_level)
        application = application_of(config, options)
    except (ModelError, RuntimeUnavailable) as error:
        return _explain(error)
    try:
        server = HttpServer(application, options)
    except (OSError, ValueError) as error:  # the port is taken, or the host is unknown
        return _explain(f"cannot listen on {options.host} port {options.port}: {error}")
    warn_when_open(options)
    preload = _Preload(application, server, options)
    preload.start()
    application.warm()
    server.run()
    return 0 if preload.failure is None else _explain(preload.failure)


class _Preload(threading.Thread):
    """Loads the model that the server was started for; when that fails, a server without other models ends."""

    def __init__(self, application: Application, server: HttpServer, options: ServerOptions) -> None:
        super().__init__(name="preload", daemon=True)
        self.failure: Exception | None = None  # the error that ends the server
        self._application, self._server, self._options = application, server, options

    def run(self) -> None:
        application = self._application
        try:
            application.preload(self._options.model)
        except Exception as error:
            if application.in_flight.draining:
                return
            log.error("model %s is not ready: %s", self._options.model, error)
            pool = application.pool
            if self._options.wait_for_model == "off" and not pool.loaded_keys() and pool.loading is None:
                self.failure = error
                self._server.stop()


def warn_when_open(options: ServerOptions) -> None:
    """Warn when other machines can use the server without a key."""
    if not options.api_keys and not _is_loopback(options.host):
        log.warning(
            "listening on %s without an API key: everybody who can reach this machine can use the server; "
            "set --api-key-file or %s, or --host 127.0.0.1", options.host, KEYS_VARIABLE,
        )  # fmt: skip


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _explain(error: Exception | str) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1
