# PYTHON_ARGCOMPLETE_OK
"""The ``ocr-onnx`` program: finds the command and runs it.

Only the wanted command's module is imported, so that help and completion come at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

from models import __version__
from models.arguments import Parser

from ..streams import have_streams
from .command_errors import CommandFailed, Interrupted, UsageError, printable
from .signals import handled

DESCRIPTION = "OCR with vision-language models on ONNX Runtime: read documents, serve an API, look after models."
EPILOG = """\
examples:
  ocr-onnx read report.pdf -o out        a PDF to Markdown, with its figures
  ocr-onnx layout page.png               where its parts stand, as JSON
  ocr-onnx serve --dtype q4              the OpenAI-compatible server (the same as ocr-onnx-serve)
  ocr-onnx export deepseek-ocr           download a checkpoint and convert it to graphs
  ocr-onnx models                        what can be used, and what is exported
  ocr-onnx doctor                        what this machine has, and what is missing

Each command has --help. Completion in bash: eval "$(register-python-argcomplete ocr-onnx)"
"""


class CommandModule(Protocol):
    """The interface of a command's module."""

    DESCRIPTION: str
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, given: Mapping[str, Any]) -> int: ...


@dataclass(frozen=True)
class _Command:
    module: str
    summary: str


COMMANDS: Mapping[str, _Command] = {
    "read": _Command("server.command.read", "read PDFs, pictures and folders into Markdown, JSON or text"),
    "layout": _Command("server.command.layout", "find the parts of pages, with a layout detector alone"),
    "serve": _Command("server.http.subcommand", "serve the OpenAI-compatible API; the same as ocr-onnx-serve"),
    "compare": _Command("server.command.compare", "compare two readings: characters, words, tables, order"),
    "eval": _Command("server.command.evaluate", "read a published benchmark and score it: OmniDocBench, olmOCR-bench"),
    "models": _Command("server.command.models", "list the models: known, exported, where, how large"),
    "export": _Command("export.cli", "convert a published checkpoint into graphs; the same as ocr-onnx-export"),
    "doctor": _Command("server.command.doctor", "check this machine, and say how to mend what is missing"),
    "pack": _Command("server.command.pack", "put an export into one file, for a machine that only serves"),
    "unpack": _Command("server.command.unpack", "put such a file's export into the cache"),
    "prune": _Command("server.command.prune", "remove exports that nobody needs any more"),
}


def build_parser(wanted: str) -> argparse.ArgumentParser:
    """The parser, with the flags of the wanted command alone: modules of other commands are not imported."""
    parser = Parser(
        prog="ocr-onnx", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"ocr-onnx {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        if name == wanted:
            module: Any = importlib.import_module(command.module)
            sub = commands.add_parser(
                name, help=command.summary, description=module.DESCRIPTION, epilog=module.EXAMPLES,
                argument_default=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter,
            )  # fmt: skip
            module.add_arguments(sub)
            sub.set_defaults(run=module.run, usage_error=sub.error)
        else:
            commands.add_parser(name, help=command.summary)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code: 0, 1 after a failure, 2 after a wrong command line, 130 interrupted."""
    have_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    with handled(_leave, signal.SIGINT):
        given = _parse(arguments)
    run: Callable[[Mapping[str, Any]], int] = given.pop("run")
    try:
        return run(given)
    except UsageError as error:
        print(printable(f"error: {error}", keep="\n"), file=sys.stderr)
        return 2
    except CommandFailed as error:
        print(printable(f"error: {error}", keep="\n"), file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a missing permission: not explained further down
        print(printable(f"error: {error}", keep="\n"), file=sys.stderr)
        return 1


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The flags as argparse gives them; or, when the shell asks for completions, the answer and an exit."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        words = os.environ.get("COMP_LINE", "").split()
        argcomplete.autocomplete(build_parser(next((word for word in words if word in COMMANDS), "")))
    return vars(build_parser(arguments[0] if arguments else "").parse_args(arguments))


def _leave(number: int, frame: FrameType | None) -> None:
    """End at Ctrl-C before anything has begun. KeyboardInterrupt could get lost in the middle of an import."""
    os.write(2, b"interrupted\n")
    os._exit(130)
