"""The command line: ``ocr-onnx-serve``."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import precedence
from models.catalog import DTYPES
from models.config import DEVICES, Config, load_config
from models.config_template import SERVER_KEYS, ServerKey
from models.errors import InvalidInput, ModelError
from models.precedence import Setting
from models.settings import InferenceSettings
from runtime.errors import RuntimeUnavailable

from . import auth, logs, memory
from .app import Application, build
from .loading import ModelSource
from .options import ServerOptions, server_options
from .serve import HttpServer

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

{auth.ENVIRONMENT} holds an API key (several with commas between), where the command line should not show it.
"""


def build_parser() -> argparse.ArgumentParser:
    """All flags. A flag that is not given leaves no trace, so that config.toml can speak."""
    parser = argparse.ArgumentParser(
        prog="ocr-onnx-serve", description=DESCRIPTION, epilog=EXAMPLES, argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    model = parser.add_argument_group("model")
    model.add_argument("--model", metavar="ID", help="model to load first (default: deepseek-ocr)")
    model.add_argument("--config", type=Path, metavar="PATH", help="config.toml (default: the platform's place)")
    model.add_argument("--model-config", type=Path, metavar="PATH", help="config.json instead of the model's own")
    model.add_argument("--tokenizer", type=Path, metavar="PATH", help="tokenizer.json instead of the model's own")
    model.add_argument(
        "--weights", type=Path, metavar="PATH", help="safetensors file or folder, instead of the model's"
    )
    model.add_argument("--device", choices=DEVICES, help="where to compute; metal is coreml (default: cpu)")
    model.add_argument("--dtype", choices=DTYPES, help="type of the weights (default: the device's, f32 on the CPU)")
    inference = parser.add_argument_group("defaults of requests")
    for setting in precedence.SETTINGS:
        if setting.flag:
            _add_setting(inference, setting)
    server = parser.add_argument_group("server")
    for key in SERVER_KEYS:
        _add_key(server, key)
    server.add_argument("--api-key-file", type=Path, metavar="PATH", help="file with one API key a line")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal. Returns 0, or 1 after an error that was explained on standard error."""
    memory.limit_arenas()
    parser = build_parser()
    flags = vars(parser.parse_args(argv))
    try:
        inference = {s.name: flags[s.name] for s in precedence.SETTINGS if s.name in flags}
        InferenceSettings().override(inference)
    except InvalidInput as error:
        parser.error(str(error))
    logs.configure(flags.get("log_format", "text"))
    try:
        config = load_config(flags.get("config"))
        options = _options(config, flags, inference)
        logs.configure(options.log_format)
        application = _application(config, options)
    except (ModelError, RuntimeUnavailable) as error:
        return _explain(error)
    try:
        server = HttpServer(application, options)
    except (OSError, ValueError) as error:  # the port is taken, or the host is none
        return _explain(f"cannot listen on {options.host} port {options.port}: {error}")
    _warn_when_open(options)
    threading.Thread(target=_preload, args=(application, options.model), name="preload", daemon=True).start()
    server.run()
    return 0


def _options(config: Config, flags: dict[str, Any], inference: dict[str, Any]) -> ServerOptions:
    keys = [*(flags.get("api_keys") or []), *auth.extra_keys(flags.get("api_key_file"))]
    return server_options(
        config.server,
        {**flags, "api_keys": keys},
        model=flags.get("model", config.active),
        device=flags.get("device", config.device or "cpu"),
        dtype=flags.get("dtype"),
        model_config=flags.get("model_config"),
        tokenizer=flags.get("tokenizer"),
        weights=flags.get("weights"),
        inference_flags=inference,
    )


def _application(config: Config, options: ServerOptions) -> Application:
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


def _preload(application: Application, model_id: str) -> None:
    try:
        application.preload(model_id)
    except Exception as error:
        # Requests get the same answer as a 503, and the next one tries again.
        log.error("model %s is not ready: %s", model_id, error)


def _warn_when_open(options: ServerOptions) -> None:
    if not options.api_keys and not _is_loopback(options.host):
        log.warning(
            "listening on %s without an API key: everybody who can reach this machine can use the server; "
            "set --api-key-file or %s, or --host 127.0.0.1", options.host, auth.ENVIRONMENT,
        )  # fmt: skip


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _explain(error: Exception | str) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1


def _add_setting(group: argparse._ArgumentGroup, setting: Setting) -> None:
    builtin = getattr(InferenceSettings(), setting.name)
    shown = setting.default_text if builtin is None else str(builtin).lower()
    text = f"{setting.help} (default: {shown})"
    if setting.kind == "boolean":
        group.add_argument(
            setting.flag or "", dest=setting.name, type=_boolean, nargs="?", const=True, metavar="true|false", help=text
        )
        return
    convert = _integer_or_none(setting) if setting.kind == "integer" else float
    metavar = "N" if setting.kind == "integer" else "X"
    group.add_argument(setting.flag or "", dest=setting.name, type=convert, metavar=metavar, help=text)


def _add_key(group: argparse._ArgumentGroup, key: ServerKey) -> None:
    if isinstance(key.default, list):
        flag = "--" + key.name.removesuffix("s").replace("_", "-")
        group.add_argument(flag, dest=key.name, action="append", metavar="TEXT", help=f"{key.help}; may be repeated")
        return

    def convert(text: str) -> Any:
        try:
            value = type(key.default)(text)
        except ValueError:
            value = None
        if not key.accepts(value):
            raise argparse.ArgumentTypeError(f"expected {key.expected}, found {text!r}")
        return value

    flag = "--" + key.name.replace("_", "-")
    group.add_argument(flag, type=convert, metavar=key.name.upper(), help=f"{key.help} (default: {key.default})")


def _boolean(text: str) -> bool:
    match text.lower():
        case "true" | "1" | "yes" | "on":
            return True
        case "false" | "0" | "no" | "off":
            return False
    raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")


def _integer_or_none(setting: Setting) -> Any:
    def convert(text: str) -> int | None:
        if text.lower() == "none" and setting.default_text is not None:
            return None
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected an integer, found {text!r}") from None
        return None if value in setting.off else value

    return convert
