"""Puts the resources together into one WSGI application."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import falcon

from models.config import Config
from runtime.documents import Limits, Workers
from runtime.library.source import ModelKey, ModelSource
from server.fetch import Fetcher
from server.options import ServerOptions

from . import error_answers, web
from .admission import Admission, Capacity
from .auth import ApiKeys
from .chat import ChatCompletions
from .document_reader import DocumentReader
from .endpoint import Endpoint
from .exporting import Exports
from .health import Health, MetricsResource, Ready
from .images import ImageReader
from .in_flight import RequestsInFlight
from .logs import RequestLog
from .metrics import Metrics
from .mistral.files import File, FileContent, Files, FileStore, SignedUrl
from .mistral.job_files import JobFiles
from .mistral.jobs import JobById, JobCancel, Jobs, OcrJobs
from .mistral.ocr import Ocr, OcrReader
from .models_api import ModelById, ModelList
from .openapi import OpenApi
from .paddlex.layout_parsing import LayoutParsing
from .pool import ModelPool
from .responses import Responses

WORKERS = max(2, min(8, (os.cpu_count() or 1) // 2))  # worker processes, for images and for documents each

TOKENS_OF_A_PLACE = 32_768  # tokens that a request may ask for without taking other requests' share


@dataclass(frozen=True)
class Application:
    """The WSGI application and the parts that outlive a request."""

    wsgi: falcon.App[Any, Any]
    in_flight: RequestsInFlight
    pool: ModelPool[ModelKey]
    source: ModelSource
    exports: Exports
    jobs: OcrJobs
    metrics: Metrics
    keys: ApiKeys
    admission: Admission
    workers: tuple[Workers, ...]  # of images and of documents, apart so that slow pages do not delay single images

    def preload(self, model_id: str) -> None:
        """Load a model ahead of requests, however long its export takes."""
        key = self.source.key(self.source.entry(model_id))
        self.exports.require(key, keep=True)
        self.pool.acquire(key).release()

    def warm(self) -> None:
        """Start worker processes ahead of requests."""
        for workers in self.workers:
            workers.warm()

    def close(self) -> None:
        """End exports and close the models."""
        self.exports.close()
        self.source.close()
        self.pool.close()
        self.jobs.close()
        for workers in self.workers:
            workers.close()


def _route(app: falcon.App[Any, Any], path: str, resource: Any) -> None:
    """A route that answers GET answers HEAD too, which monitors send. Falcon drops the body."""
    if hasattr(resource, "on_get") and not hasattr(resource, "on_head"):
        resource.on_head = resource.on_get
    app.add_route(path, resource)


def build(
    config: Config, options: ServerOptions, source: ModelSource, *, fetcher: Fetcher | None = None
) -> Application:
    """Make the application. ``source`` opens the models; ``fetcher`` replaces the one that the options describe."""
    exports = Exports(
        source,
        on_demand=options.export_on_demand == "on",
        wait=options.export_wait,
        most_waiting=options.capacity // 4,  # the other places are for requests of loaded models
    )
    pool = ModelPool[ModelKey](exports.load, max_loaded=options.max_loaded_models, timeout=options.queue_timeout)
    fetcher = fetcher or Fetcher(options.remote_images, options.max_image_mb << 20, options.remote_timeout)
    files = FileStore(options.max_files_mb << 20)
    admission = Admission(
        Capacity(
            places=options.capacity,
            documents=max(1, options.capacity // 2),  # the other places are for single images
            bodies=max(1 << 30, 8 * (options.max_body_mb << 20)),
            pixels=4 * options.max_image_megapixels * 1_000_000,
            tokens=options.capacity * TOKENS_OF_A_PLACE,
        )
    )
    images = ImageReader(
        fetcher,
        Workers(WORKERS, Limits(options.page_timeout)),
        max_images=options.max_images,
        max_bytes=options.max_image_mb << 20,
        max_pixels=options.max_image_megapixels * 1_000_000,
        admission=admission,
    )
    documents = DocumentReader(
        Workers(WORKERS, Limits(options.page_timeout, most_killed=2)),
        max_bytes=options.max_image_mb << 20,
        max_pixels=options.max_image_megapixels * 1_000_000,
        max_pages=options.max_pages,
    )
    metrics = Metrics()
    in_flight = RequestsInFlight(config, options, source, exports, pool, images, documents, admission)
    metrics.watch("ocr_queue_depth", "Requests waiting for a model or inside its queue",
                  lambda: pool.waiting + pool.queue_depth())  # fmt: skip
    metrics.watch("ocr_active_requests", "Requests being encoded, prefilled or decoded", pool.active)
    metrics.watch("ocr_requests_present", "Generation requests in the house", lambda: in_flight.present)
    metrics.watch_kinds("ocr_held", "What requests hold of the house", "kind", admission.kinds)
    metrics.watch_engines(lambda: [(key.entry.id, load) for key, load in pool.loads()])
    metrics.watch("ocr_loaded_models", "Models in memory", lambda: len(pool.loaded_keys()))

    keys = ApiKeys(options.api_keys, opens=lambda req: files.signed(req.path, req.query_string) is not None)
    middleware: list[Any] = [
        RequestLog(),
        keys,
    ]
    if options.cors_origins:
        origins = "*" if "*" in options.cors_origins else list(options.cors_origins)
        middleware.insert(0, falcon.CORSMiddleware(allow_origins=origins, expose_headers=["X-Request-Id"]))
    app: falcon.App[Any, Any] = falcon.App(middleware=middleware)
    app.req_options.strip_url_path_trailing_slash = True
    error_answers.install(app)

    max_body = options.max_body_mb << 20
    max_file = options.max_image_mb << 20
    reader = OcrReader(files, fetcher, max_file, options.model)
    kept = JobFiles(config.cache_dir / "jobs", options.jobs_mb << 20, options.jobs_hours * 3600)
    jobs = OcrJobs(in_flight, reader, metrics, kept, options.max_jobs)
    _route(app, ChatCompletions.path, ChatCompletions(Endpoint(in_flight, metrics, max_body)))
    _route(app, Responses.path, Responses(Endpoint(in_flight, metrics, max_body)))
    _route(app, Ocr.path, Ocr(Endpoint(in_flight, metrics, max_body), reader))
    layout_parsing = LayoutParsing(Endpoint(in_flight, metrics, max_body), source, fetcher, max_file, options.model)
    _route(app, LayoutParsing.path, layout_parsing)
    _route(app, Jobs.path, Jobs(jobs, max_body))
    _route(app, f"{Jobs.path}/{{job_id}}", JobById(jobs))
    _route(app, f"{Jobs.path}/{{job_id}}/cancel", JobCancel(jobs))
    _route(app, "/v1/files", Files(files, max_file))
    _route(app, "/v1/files/{file_id}", File(files))
    _route(app, "/v1/files/{file_id}/content", FileContent(files))
    _route(app, "/v1/files/{file_id}/url", SignedUrl(files))
    _route(app, "/v1/models", ModelList(source, pool))
    _route(app, "/v1/models/{model_id}", ModelById(source, pool))
    _route(app, "/health", Health())
    _route(app, "/v1/health", Health())
    _route(app, "/ready", Ready(in_flight, pool, exports))
    _route(app, "/metrics", MetricsResource(metrics))
    _route(app, "/openapi.json", OpenApi())
    if options.web == "on":
        web.install(partial(_route, app), config, options, source, in_flight, documents.workers, admission)
    return Application(
        app, in_flight, pool, source, exports, jobs, metrics, keys, admission, (images.workers, documents.workers)
    )


def application_of(config: Config, options: ServerOptions) -> Application:
    """Check what can be checked before listening, then build.

    Raises
    ------
    RuntimeUnavailable
        when ONNX Runtime or the device is not there.
    ConfigError
        for a model that is unknown, or a replacement file that is missing.
    """
    from runtime.providers import find_device  # needs ONNX Runtime; a missing one gets a clear error

    device = find_device(options.device, options.threads or None)
    source = ModelSource(config, options, device.name)
    source.key(source.entry(options.model))
    return build(config, options, source)
