"""Runs ``ocr-onnx serve --ray``: an application on a cluster, from the flags to its end. ray is imported on demand."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Mapping
from typing import Any

from server.http import logs

from . import cluster
from .plan import prepared

log = logging.getLogger(__name__)

NAME = "ocr-onnx"  # of the application on the cluster


def run(given: Mapping[str, Any]) -> int:
    """Serve on a cluster until a signal. Raises as ``prepared`` and ``cluster.joined``."""
    cluster.check_address(given["ray"])
    ended = threading.Event()
    with cluster.joined(given["ray"]):
        for number in (signal.SIGTERM, signal.SIGINT):  # after Ray, whose handlers these replace
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
