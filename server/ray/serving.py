"""``serve --ray``: the flags, and the way from them to an application on a cluster. ray is imported on demand."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from models.arguments import read_config
from models.config import Config
from models.errors import InvalidInput
from server import flags
from server.http import logs
from server.options import ServerOptions

from . import cluster

if TYPE_CHECKING:
    from .service import Plan

log = logging.getLogger(__name__)

NAME = "ocr-onnx"  # of the application on the cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of serving on a cluster."""
    group = parser.add_argument_group("a cluster of Ray (extra ray) instead of this process")
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const=cluster.HERE,
        help="serve with engines on a cluster: host:6379, auto for the one that runs here, local for one of this "
        "program's own; without ADDRESS that of RAY_ADDRESS, else local",
    )
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


def prepared(given: Mapping[str, Any]) -> tuple[Config, ServerOptions, Plan]:
    """What ``service.build`` takes, from parsed flags. A cluster has been joined.

    Raises
    ------
    ConfigError, InvalidInput
        for a model or a setting that is none.
    """
    from server.http.cli import options_of

    from .service import Plan

    config = read_config(given)
    options = options_of(config, dict(given), flags.given_settings(given))
    if ":" in options.device:
        raise InvalidInput(f"device is {options.device!r}; Ray gives each engine a GPU of its own: say --device cuda")
    gpu = options.device == "cuda" or (options.device == "auto" and cluster.has_gpus())
    models = list(dict.fromkeys([options.model, *filter(None, given.get("models", "").split(","))]))
    for model in models:
        config.entry(model)
    least, most = given.get("replicas", (1, 1))
    options = replace(options, device="cuda" if gpu else "cpu", threads=0 if gpu else options.threads or 1)
    plan = Plan(
        models, least, most, given.get("desk", False), options.threads, gpu,
        **{name: given[name] for name in ("upscale_seconds", "downscale_seconds") if name in given},
    )  # fmt: skip
    return replace(config, cache=config.cache_dir), options, plan


def run(given: Mapping[str, Any]) -> int:
    """Serve on a cluster until a signal. Raises as ``prepared`` and ``cluster.joined``."""
    cluster.check_address(given["ray"])
    ended = threading.Event()
    with cluster.joined(given["ray"]):
        for number in (signal.SIGTERM, signal.SIGINT):  # behind Ray, which has handlers of its own
            signal.signal(number, lambda *_: ended.set())
        from ray import serve

        from .service import build

        config, options, plan = prepared(given)
        logs.configure(options.log_format, options.log_level)
        serve.start(http_options={"host": options.host, "port": options.port, "request_timeout_s": None})
        serve.run(build(config, options, plan), name=NAME, route_prefix="/", blocking=False)
        log.info("serving %s on http://%s:%d", ", ".join(plan.models), options.host, options.port)
        ended.wait()
        log.info("shutting down: running requests have %.0f s to finish", options.shutdown_timeout)
        serve.shutdown()
    return 0


def _range(text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    if not (least.isdecimal() and (most or least).isdecimal() and 1 <= int(least) <= int(most or least)):
        raise argparse.ArgumentTypeError(f"expected a number or a range such as 1-4, found {text!r}")
    return int(least), int(most or least)
