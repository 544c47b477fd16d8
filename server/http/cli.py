"""The command line: ``ocr-onnx-serve``."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from models.arguments import Parser, read_config
from models.config import Config
from models.errors import InvalidInput, ModelError
from runtime.errors import RuntimeUnavailable
from runtime.library import memory
from runtime.library.source import ModelSource
from server import flags
from server.command.errors import CommandFailed, UsageError
from server.options import KEYS_VARIABLE, ServerOptions, server_options
from server.ray import serving

from . import auth, logs
from .app import Application, build
from .listener import HttpServer

log = logging.getLogger(__name__)

DESCRIPTION = """\
Serve OCR models behind OpenAI's API: /v1/chat/completions, /v1/responses, /v1/models; /health, /ready, /metrics.
A model that has not been exported yet is exported first. Defaults come from config.toml, which is written with
commented defaults where it is missing.
"""
EXAMPLES = f"""\
examples:
  ocr-onnx-serve                                          DeepSeek-OCR on the CPU, port 8000
  ocr-onnx-serve --model tiny-ocr --host 127.0.0.1        the built-in miniature, for this machine only
  ocr-onnx-serve --device cuda --max-new-tokens 4096      on an NVIDIA GPU
  ocr-onnx-serve --api-key-file keys.txt --cors-origin http://localhost:3000

{KEYS_VARIABLE} holds an API key (several with commas between), where the command line should not show it.
"""


def build_parser() -> argparse.ArgumentParser:
    """All flags. A flag that is not given leaves no trace, so that config.toml can speak."""
    parser = Parser(
        prog="ocr-onnx-serve", description=DESCRIPTION, epilog=EXAMPLES, argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags, for this program and for ``ocr-onnx serve``."""
    flags.add_model_flags(parser.add_argument_group("model"), "model to load first")
    flags.add_setting_flags(parser.add_argument_group("defaults of requests"))
    server = parser.add_argument_group("server")
    flags.add_server_flags(server)
    server.add_argument("--api-key-file", type=Path, metavar="PATH", help="file with one API key a line")
    serving.add_arguments(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal. Returns 0, or 1 after an error that was explained on standard error."""
    parser = build_parser()
    return serve(vars(parser.parse_args(argv)), parser.error)


def serve(given: dict[str, Any], usage_error: Callable[[str], NoReturn]) -> int:
    """See ``main``. ``given``: the parsed flags."""
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
    except (OSError, ValueError) as error:  # the port is taken, or the host is none
        return _explain(f"cannot listen on {options.host} port {options.port}: {error}")
    _warn_when_open(options)
    preload = _Preload(application, server, options)
    preload.start()
    application.warm()
    server.run()
    return 0 if preload.failure is None else _explain(preload.failure)


def options_of(config: Config, given: dict[str, Any], inference: dict[str, Any]) -> ServerOptions:
    """The server's options from parsed flags and config.toml."""
    keys = [*(given.get("api_keys") or []), *auth.extra_keys(given.get("api_key_file"))]
    options = server_options(
        config.server,
        {**given, "api_keys": keys},
        model=given.get("model", config.active),
        device=given.get("device", config.device or "cpu"),
        dtype=given.get("dtype"),
        model_config=given.get("model_config"),
        tokenizer=given.get("tokenizer"),
        weights=given.get("weights"),
        adapter=given.get("adapter"),
        inference_flags=inference,
    )
    if options.device != "cuda:all":
        return options
    from runtime.providers import each_card

    return replace(options, engines=len(each_card(options.device)))  # which all have rows to fill


def application_of(config: Config, options: ServerOptions) -> Application:
    """Check what can be checked before listening, then build.

    Raises
    ------
    RuntimeUnavailable
        when ONNX Runtime or the device is not there.
    ConfigError
        for a model that is unknown, or a replacement file that is missing.
    """
    from runtime.providers import find_device  # needs ONNX Runtime, whose absence deserves more than a traceback

    device = find_device(options.device, options.threads or None)
    source = ModelSource(config, options, device.name)
    source.key(source.entry(options.model))
    return build(config, options, source)


class _Preload(threading.Thread):
    """Loads the model that the server was started for; a server that has no other one ends when that fails."""

    def __init__(self, application: Application, server: HttpServer, options: ServerOptions) -> None:
        super().__init__(name="preload", daemon=True)
        self.failure: Exception | None = None  # what ends the server
        self._application, self._server, self._options = application, server, options

    def run(self) -> None:
        application = self._application
        try:
            application.preload(self._options.model)
        except Exception as error:
            if application.generator.draining:
                return
            log.error("model %s is not ready: %s", self._options.model, error)
            pool = application.pool
            if self._options.wait_for_model == "off" and not pool.loaded_keys() and pool.loading is None:
                self.failure = error
                self._server.stop()


def _warn_when_open(options: ServerOptions) -> None:
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
