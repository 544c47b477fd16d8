"""From the flags of ``ocr-onnx serve --ray`` to a plan of replicas. ray is imported on demand."""

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
class ServingPlan:
    """Which models a cluster serves, in how many replicas, and what each replica computes on."""

    models: Sequence[str]  # ids; a request that names no model goes to the first
    least: int = 1  # replicas of each model
    most: int = 1
    desk: bool = False  # one replica more, which keeps files and jobs
    threads: int = 1  # CPUs of a replica without a GPU
    gpu: bool = False  # each replica has a GPU of its own
    upscale_seconds: float = 10.0  # of a queue, before one replica more is started
    downscale_seconds: float = 300.0  # without a queue, before a replica is ended


def prepared(given: Mapping[str, Any]) -> tuple[Config, ServerOptions, ServingPlan]:
    """What ``service.build`` takes, from parsed flags. Call this after a cluster has been joined: GPUs are counted.

    Raises
    ------
    ConfigError, InvalidInput
        for an unknown model or setting.
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
    plan = ServingPlan(
        models, least, most, given.get("desk", False), options.threads, gpu,
        **{name: given[name] for name in ("upscale_seconds", "downscale_seconds") if name in given},
    )  # fmt: skip
    return replace(config, cache=config.cache_dir), options, plan
