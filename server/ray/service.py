"""The API on Ray Serve: replicas that come and go with the number of waiting requests, behind one address.

proxies of Serve ─> FrontReplica (deployment "Door") ─> EngineReplica ("Engine MODEL"): the server's own application
                                                    └─> EngineReplica ("Desk"): one, keeps files and jobs (--desk)

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
from .pinning import pin
from .plan import ServingPlan, prepared
from .replica_metrics import ReplicaMetrics

SEND_SECONDS = 5.0  # between two times that a replica sends its metrics
SLOTS = 4  # requests that an engine decodes together, where --slots is not given
QUIET = {"enable_access_log": False}  # the application writes its own line for each request
DESK_SECONDS = 7 * 86_400.0  # that the desk stays without a request: it would forget files and jobs


class EngineReplica:
    """One replica of a model: the server's whole application with this one model, and so with one engine."""

    def __init__(self, config: Config, options: ServerOptions, metrics: Any) -> None:
        """Load the model: Serve sends requests only after this. metrics : handle of ``ReplicaMetrics``."""
        memory.settle_malloc()
        logs.configure(options.log_format, options.log_level)
        # First: threads inherit the CPUs of their process.
        self._pinned = pin(options.threads) if options.device == "cpu" else None
        self._application: Application = application_of(config, options)
        self._application.preload(options.model)
        self._application.warm()
        self._threads = ThreadPoolExecutor(options.capacity + SPARE_THREADS, "request")
        self._drain_seconds = options.shutdown_timeout
        self._ended = threading.Event()
        name = serve.get_replica_context().replica_tag
        threading.Thread(target=self._send_metrics, args=(metrics, name), name="metrics", daemon=True).start()

    async def __call__(self, call: Call) -> AsyncIterator[Head | bytes]:
        """Answer a request piece by piece. A caller that stops iterating cancels the request."""
        async with aclosing(answers(self._application.wsgi, call, self._threads)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece

    def check_health(self) -> None:
        """Raise when the engine has failed: Serve then replaces this replica."""
        if not self._application.pool.loaded_keys():
            raise ModelUnavailable("the engine has failed")

    def pid(self) -> int:
        """The id of the replica's process."""
        return os.getpid()

    def _send_metrics(self, metrics: Any, name: str) -> None:
        while not self._ended.wait(SEND_SECONDS):
            # Fails while the cluster ends; the next text replaces this one anyway.
            with contextlib.suppress(Exception):
                metrics.put.remote(name, self._application.metrics.text().decode())

    async def __del__(self) -> None:
        """Called by Serve after running requests have finished, or its patience has ended."""
        self._ended.set()
        application = self._application
        await asyncio.get_running_loop().run_in_executor(None, application.in_flight.drain, self._drain_seconds)
        application.close()


@serve.ingress()
class FrontReplica:
    """The replica of Serve that ``Front`` runs in."""

    def __init__(
        self, models: Mapping[str, Any], keys: Sequence[str], max_body: int, metrics: Any, desk: Any | None
    ) -> None:
        """models, metrics, desk : handles of the other deployments."""
        self._front = Front(
            {model: _ServeReplicas(handle) for model, handle in models.items()}, ApiKeys(keys), max_body,
            lambda: metrics.text.remote(), _ServeReplicas(desk) if desk is not None else None,
        )  # fmt: skip

    def __serve_build_asgi_app__(self) -> Front:
        return self._front


class _ServeReplicas:
    """See ``front.Replicas``: asked by a handle of Serve."""

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


def build(config: Config, options: ServerOptions, plan: ServingPlan) -> Any:
    """The application, ready for ``serve.run``."""
    metrics = serve.deployment(name="Numbers", logging_config=QUIET, ray_actor_options={"num_cpus": 0})(
        ReplicaMetrics
    ).bind()
    engines = {model: _deployment(config, options, plan, model, metrics) for model in plan.models}
    desk = _deployment(config, options, plan, plan.models[0], metrics, alone=True) if plan.desk else None
    front = serve.deployment(
        name="Door", logging_config=QUIET, num_replicas=1, max_ongoing_requests=10_000,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=options.shutdown_timeout,
    )(FrontReplica)  # fmt: skip
    return front.bind(engines, options.api_keys, options.max_body_mb << 20, metrics, desk)


def _deployment(
    config: Config, options: ServerOptions, plan: ServingPlan, model: str, metrics: Any, *, alone: bool = False
) -> Any:
    """The replicas of a model, not started yet. alone : the desk, one replica that nothing scales."""
    slots = options.slots or SLOTS
    scaling = {
        "min_replicas": 0 if alone else plan.least,
        "initial_replicas": 0 if alone else plan.least,
        "max_replicas": 1 if alone else plan.most,
        "target_ongoing_requests": slots,
        "upscale_delay_s": 0 if alone else plan.upscale_seconds,
        "downscale_delay_s": DESK_SECONDS if alone else plan.downscale_seconds,
        # Replicas and callers count their requests each second and tell the controller every metrics_interval_s, which
        # decides by the mean of the last look_back_period_s: what is told less often is too old for it. Ray 2.60 names
        # environment variables that will replace the interval, but does not read them yet.
        "metrics_interval_s": 2,
        "look_back_period_s": 5,
    }
    # A replica has as many requests as its engine decodes, and as many again whose images are encoded meanwhile. All
    # other requests wait in Serve's queue, where the first replica that becomes free takes them.
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
    )(EngineReplica).bind(config, own, metrics)  # fmt: skip


def app(arguments: dict[str, str]) -> Any:
    """The application for ``serve run server.ray.service:app NAME=VALUE ...`` and for Serve's configuration files.

    arguments : flags of ``ocr-onnx serve --ray`` without the dashes in front, with underlines for hyphens.
    """
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items()]
    return build(*prepared(vars(build_parser().parse_args([*flags, "--ray=auto"]))))
