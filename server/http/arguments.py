"""The server's flags, and the options from flags and config.toml, for every way to start the server."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.arguments import Parser
from models.config import Config
from server import flags
from server.options import KEYS_VARIABLE, ServerOptions, given_options
from server.ray import arguments as ray_arguments

from . import auth

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
    """A parser of all flags. A flag that is not given is absent from the result, so that config.toml's value counts."""
    parser = Parser(
        prog="ocr-onnx-serve", description=DESCRIPTION, epilog=EXAMPLES, argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags, for this program and for ``ocr-onnx serve``."""
    flags.add_model_flags(parser.add_argument_group("model"), "model to load first")
    flags.add_setting_flags(parser.add_argument_group("defaults of requests"))
    server = parser.add_argument_group("server")
    flags.add_server_flags(server)
    server.add_argument("--api-key-file", type=Path, metavar="PATH", help="file with one API key a line")
    ray_arguments.add_arguments(parser)


def options_of(config: Config, given: dict[str, Any], inference: dict[str, Any]) -> ServerOptions:
    """The server's options from parsed flags and config.toml."""
    keys = [*(given.get("api_keys") or []), *auth.extra_keys(given.get("api_key_file"))]
    found = given_options(config, {**given, "api_keys": keys}, inference)
    if found.device != "cuda:all":
        return found
    from runtime.providers import each_card

    return replace(found, engines=len(each_card(found.device)))  # each engine has rows to fill
