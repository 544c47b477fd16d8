"""/health (alive), /ready (a model is loaded and new work is taken), /metrics."""

from __future__ import annotations

import falcon

from runtime.library.source import ModelKey

from .exporting import Exports
from .in_flight import RequestsInFlight
from .metrics import CONTENT_TYPE, Metrics
from .pool import ModelPool


class Health:
    """Answers while the process lives, whatever the models do."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = {"status": "ok"}


class Ready:
    """For load balancers: 503 until a model is loaded, and again when its engine has failed and at the shutdown."""

    def __init__(self, in_flight: RequestsInFlight, pool: ModelPool[ModelKey], exports: Exports) -> None:
        self._in_flight, self._pool, self._exports = in_flight, pool, exports

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._pool.replace_failed()
        models = [str(key) for key in self._pool.loaded_keys()]
        exporting = self._exports.running()
        if self._in_flight.draining:
            status = "shutting_down"
        elif models:
            status = "ready"
        else:
            status = "loading" if self._pool.loading is not None or exporting is not None else "no_model"
        resp.media = {"status": status, "models": models, **({"exporting": exporting} if exporting else {})}
        if status != "ready":
            resp.status = falcon.HTTP_503
            resp.set_header("Retry-After", "5")


class MetricsResource:
    """Prometheus' text format."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = CONTENT_TYPE
        resp.data = self._metrics.text()
