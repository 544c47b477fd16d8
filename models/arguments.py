"""For the command lines of all programs: a parser whose errors name the nearest word, and flags for config.toml."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .nearest import did_you_mean

if TYPE_CHECKING:
    from .config import Config


class Parser(argparse.ArgumentParser):
    """argparse's parser, but an error is one line in front of the usage and names the nearest right word."""

    def error(self, message: str) -> NoReturn:
        title, _, words = message.partition("unrecognized arguments: ")
        if words and not title:
            flag = next((word for word in words.split() if word.startswith("-")), words)
            message += did_you_mean(flag.partition("=")[0], self._flags())
        self.exit(2, f"error: {message}\n\n{self.format_usage()}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # The only method in which a subclass of argparse's parser can name the choices (Python 3.11 to 3.14).
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            message = f"{value!r} is not one of {', '.join(known)}{did_you_mean(str(value), known)}"
            raise argparse.ArgumentError(action, message)

    def _flags(self) -> Iterator[str]:
        """Every flag of this parser and of its commands."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    yield from command._flags()


def add_config_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--config`` and ``--init-config``, which ``read_config`` follows."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="config.toml (default: the platform's place)")
    parser.add_argument(
        "--init-config", action="store_true", help="write the file that --config names, with commented defaults, "
        "where there is none",
    )  # fmt: skip


def read_config(given: Mapping[str, Any]) -> Config:
    """The configuration that the parsed flags name; see ``models.config.load_config``."""
    from .config import load_config  # imports NumPy, and help must come at once

    return load_config(given.get("config"), create=given.get("init_config", False))
