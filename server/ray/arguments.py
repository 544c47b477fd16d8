"""The flags of ``ocr-onnx serve --ray``, and ``--ray`` itself, which ``ocr-onnx read`` has too."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from . import cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of serving on a cluster."""
    group = parser.add_argument_group("a cluster of Ray (extra ray) instead of this process")
    add_address(group.add_argument, "serve")
    group.add_argument(
        "--replicas", metavar="N|MIN-MAX", type=_range, help="engines of each model, by the length of the queue (1)"
    )
    group.add_argument(
        "--models", metavar="LIST", help="more models beside --model, with commas between, each with its own engines"
    )
    group.add_argument(
        "--desk", action="store_true", help="keep /v1/files and /v1/ocr/jobs, in one engine that nobody shares"
    )
    group.add_argument("--upscale-seconds", metavar="S", type=float, help="of a queue, before an engine more (10)")
    group.add_argument("--downscale-seconds", metavar="S", type=float, help="of calm, before an engine less (300)")


def add_address(add_argument: Callable[..., object], what: str) -> None:
    """Add ``--ray``. what : is done on the cluster, as the help says it: serve, or read."""
    add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const=cluster.HERE,
        help=f"{what} with engines on a cluster: host:6379, auto for the one that runs here, local for one of this "
        "program's own; without ADDRESS that of RAY_ADDRESS, else local",
    )


def _range(text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    if not (least.isdecimal() and (most or least).isdecimal() and 1 <= int(least) <= int(most or least)):
        raise argparse.ArgumentTypeError(f"expected a number or a range such as 1-4, found {text!r}")
    return int(least), int(most or least)
