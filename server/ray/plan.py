"""How the application is spread over a cluster: from flags to a plan. ray is imported on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.arguments import read_config
from models.config import Config
from models.model_errors import InvalidInput
from server import flags
from server.http.arguments import options_of
from server.options import ServerOptions

from . import cluster


@dataclass(frozen=True)
class Plan:
    """How the application is spread over a cluster."""

    models: Sequence[str]  # ids; requests that name none get the first
    least: int = 1  # replicas of each
    most: int = 1
    desk: bool = False  # keep files and jobs
    threads: int = 1  # CPUs of an engine on CPUs
    gpu: bool = False
    upscale_seconds: float = 10.0  # of a queue, before another engine is started
    downscale_seconds: float = 300.0  # without one, before an engine is ended


def prepared(given: Mapping[str, Any]) -> tuple[Config, ServerOptions, Plan]:
    """What ``service.build`` takes, from parsed flags. A cluster has been joined.

    Raises
    ------
    ConfigError, InvalidInput
        for a model or a setting that is none.
    """
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
