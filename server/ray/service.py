"""The API on Ray Serve: engines that come and go with the number of waiting requests, behind one address.

proxies of Serve ─> Front (the door) ─> Engine (a model's replicas, the house's own application in each)
                                    └─> Desk (one replica: files and jobs, where they are wanted)

``ocr-onnx serve --ray`` starts it; ``serve run server.ray.service:app model=tiny-ocr replicas=1-3`` does too, with the
flags of ``ocr-onnx serve`` as arguments (underlines for hyphens).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray import serve
from ray.serve.exceptions import BackPressureError

from models.config import Config
from runtime.library import memory
from runtime.runtime_errors import ModelUnavailable
from server.http import logs
from server.http.app import Application, application_of
from server.http.arguments import build_parser
from server.http.auth import ApiKeys
from server.http.listener import SPARE_THREADS
from server.options import ServerOptions

from .bridge import Call, Head, answers
from .front import Front, too_many
from .numbers import Numbers
from .pinning import pin
from .plan import Plan, prepared

TELL_SECONDS = 5.0  # between two times that a replica tells its metrics
SLOTS = 4  # requests that an engine decodes together, where --slots does not say
QUIET = {"enable_access_log": False}  # the application has a line for each request itself
KEPT_SECONDS = 7 * 86_400.0  # that the desk stays without a request


class Engine:
    """One replica of a model: the server's whole application, with one model in it."""

    def __init__(self, config: Config, options: ServerOptions, numbers: Any) -> None:
        """Load the model, so that no request comes before it is there."""
        memory.settle_malloc()
        logs.configure(options.log_format, options.log_level)
        # Before threads are started, which stay where it is.
        self._pinned = pin(options.threads) if options.device == "cpu" else None
        self._application: Application = application_of(config, options)
        self._application.preload(options.model)
        self._application.warm()
        self._threads = ThreadPoolExecutor(options.capacity + SPARE_THREADS, "request")
        self._drain_seconds = options.shutdown_timeout
        self._ended = threading.Event()
        name = serve.get_replica_context().replica_tag
        threading.Thread(target=self._tell, args=(numbers, name), name="numbers", daemon=True).start()

    async def __call__(self, call: Call) -> AsyncIterator[Head | bytes]:
        """Answer a request piece by piece; the caller who stops listening is a client that hangs up."""
        async with aclosing(answers(self._application.wsgi, call, self._threads)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece

    def check_health(self) -> None:
        """Serve replaces a replica whose engine has failed."""
        if not self._application.pool.loaded_keys():
            raise ModelUnavailable("the engine has failed")

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()

    def _tell(self, numbers: Any, name: str) -> None:
        while not self._ended.wait(TELL_SECONDS):
            with contextlib.suppress(Exception):  # those of an application that just ends; the next time tells the same
                numbers.put.remote(name, self._application.metrics.text().decode())

    async def __del__(self) -> None:
        """Serve has let running requests finish before."""
        self._ended.set()
        application = self._application
        await asyncio.get_running_loop().run_in_executor(None, application.in_flight.drain, self._drain_seconds)
        application.close()


@serve.ingress()
class Door:
    """The replica of Serve that ``Front`` runs in."""

    def __init__(
        self, models: Mapping[str, Any], keys: Sequence[str], max_body: int, numbers: Any, desk: Any | None
    ) -> None:
        """models, numbers, desk : handles of the other deployments."""
        self._front = Front(
            {model: _Replicas(handle) for model, handle in models.items()}, ApiKeys(keys), max_body,
            lambda: numbers.text.remote(), _Replicas(desk) if desk is not None else None,
        )  # fmt: skip

    def __serve_build_asgi_app__(self) -> Front:
        return self._front


class _Replicas:
    """See ``front.Engines``."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle.options(stream=True)

    async def ask(self, call: Call) -> AsyncIterator[Head | bytes]:
        answer = self._handle.remote(call)
        finished = False
        try:
            async for piece in answer:
                yield piece
            finished = True
        except BackPressureError as error:
            raise too_many() from error
        finally:
            if not finished:
                answer.cancel()


def build(config: Config, options: ServerOptions, plan: Plan) -> Any:
    """The application, ready for ``serve.run``."""
    numbers = serve.deployment(name="Numbers", logging_config=QUIET, ray_actor_options={"num_cpus": 0})(Numbers).bind()
    engines = {model: _deployment(config, options, plan, model, numbers) for model in plan.models}
    desk = _deployment(config, options, plan, plan.models[0], numbers, alone=True) if plan.desk else None
    door = serve.deployment(
        name="Door", logging_config=QUIET, num_replicas=1, max_ongoing_requests=10_000,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=options.shutdown_timeout,
    )(Door)  # fmt: skip
    return door.bind(engines, options.api_keys, options.max_body_mb << 20, numbers, desk)


def _deployment(
    config: Config, options: ServerOptions, plan: Plan, model: str, numbers: Any, *, alone: bool = False
) -> Any:
    slots = options.slots or SLOTS
    scaling = {
        "min_replicas": 0 if alone else plan.least,
        "initial_replicas": 0 if alone else plan.least,
        "max_replicas": 1 if alone else plan.most,
        "target_ongoing_requests": slots,
        "upscale_delay_s": 0 if alone else plan.upscale_seconds,
        "downscale_delay_s": KEPT_SECONDS if alone else plan.downscale_seconds,
        "look_back_period_s": 5,
    }
    # An engine has its rows and as many requests again, whose images it encodes; all others wait where any engine that
    # becomes free may take them.
    own = replace(options, model=model, switch_models="off", max_loaded_models=1, api_keys=options.api_keys)
    return serve.deployment(
        logging_config=QUIET,
        name="Desk" if alone else f"Engine {model}",
        autoscaling_config=scaling,
        max_ongoing_requests=options.capacity if alone else 2 * slots,
        max_queued_requests=options.max_queue,
        graceful_shutdown_timeout_s=options.shutdown_timeout,
        health_check_period_s=10,
        ray_actor_options={"num_cpus": 1 if plan.gpu else plan.threads, "num_gpus": 1 if plan.gpu else 0},
    )(Engine).bind(config, own, numbers)  # fmt: skip


def app(arguments: dict[str, str]) -> Any:
    """For ``serve run server.ray.service:app NAME=VALUE ...`` and configuration files of Serve.

    arguments : flags of ``ocr-onnx serve --ray`` without the dashes in front, with underlines for hyphens.
    """
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items()]
    return build(*prepared(vars(build_parser().parse_args([*flags, "--ray=auto"]))))
