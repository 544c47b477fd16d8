"""The listening socket, signals, and a shutdown that lets requests in flight finish."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel

from server.options import ServerOptions

from .app import Application
from .door import Dispatcher, Door, raise_file_limit

log = logging.getLogger(__name__)

SPARE_THREADS = 8  # threads beyond those of generation requests: refusals, broken requests, lists of models
MORE_CONNECTIONS = 1000  # connections beyond the requests that are taken: idle ones, and those being refused
OTHER_FILES = 256  # files that the process has open beside connections and bodies of requests
LOOK_SECONDS = 1.0  # seconds between two looks for slow connections
FLUSH_SECONDS = 5.0  # seconds for the last bytes of finished answers to reach their clients
_LOOP_SECONDS = 0.2  # seconds; longest sleep of the socket loop


class HttpServer:
    """waitress with its own loop, so that a signal can start a drain while answers go on being sent."""

    def __init__(self, application: Application, options: ServerOptions) -> None:
        self._application, self._options = application, options
        self._sockets: dict[int, Any] = {}
        connections = options.capacity + MORE_CONNECTIONS
        files = raise_file_limit(connections + options.capacity + OTHER_FILES)
        door = Door(
            application.keys,
            application.admission,
            max_body=options.max_body_mb << 20,
            max_connections=max(options.capacity, min(connections, files - options.capacity - OTHER_FILES)),
            max_per_address=options.max_connections_per_address,
            origins=options.cors_origins,
        )
        self._door = door
        self._server = create_server(
            application.wsgi,
            map=self._sockets,
            host=options.host,
            port=options.port,
            _dispatcher=Dispatcher(options.capacity + SPARE_THREADS),
            ident="ocr-onnx",
            channel_request_lookahead=1,  # with 0, a client that hangs up during its request would not be noticed
            connection_limit=2 * connections,  # the door has its own limit, which makes room for the next connection
            asyncore_use_poll=True,  # select() takes no file numbers above 1023
            backlog=1024,
            max_request_body_size=(options.max_body_mb << 20) + 1,  # for bodies without a Content-Length
            clear_untrusted_proxy_headers=True,
        )
        listeners = [one for one in self._sockets.values() if hasattr(one, "channel_class")]
        for listener in listeners:
            listener.channel_class = door.channel
        self.addresses = [(str(one.effective_host), int(one.effective_port)) for one in listeners]
        self._finished = threading.Event()
        self._signals = 0

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain and return. Must run in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for host, port in self.addresses:
            log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        looked = time.monotonic()
        while not self._finished.is_set():
            wasyncore.loop(timeout=_LOOP_SECONDS, use_poll=True, map=self._sockets, count=1)
            if time.monotonic() > looked + LOOK_SECONDS:
                looked = time.monotonic()
                self._door.look()
        self._flush()
        self._application.close()
        self._server.task_dispatcher.shutdown(timeout=1)
        wasyncore.close_all(self._sockets, ignore_all=True)
        log.info("stopped")

    def stop(self) -> None:
        """Stop as after a signal. May be called from any thread, any number of times; returns at once."""
        self._on_signal(signal.SIGTERM, None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1:
            # The handler interrupts the socket loop, and must not wait for anything.
            threading.Thread(target=self._drain, name="drain", daemon=True).start()
        else:
            threading.Thread(target=self._application.in_flight.expire, name="expire", daemon=True).start()

    def _drain(self) -> None:
        try:
            in_flight = self._application.in_flight
            present = in_flight.refuse()  # before the log says so
            log.info("shutting down: %d requests have %.0f s to finish", present, self._options.shutdown_timeout)
            if not in_flight.drain(self._options.shutdown_timeout):
                log.warning("the time for running requests is over; they were ended early")
        finally:
            self._finished.set()

    def _flush(self) -> None:
        for _ in range(int(FLUSH_SECONDS / _LOOP_SECONDS)):
            channels = [one for one in self._sockets.values() if isinstance(one, HTTPChannel)]
            if not any(channel.requests or channel.total_outbufs_len for channel in channels):
                return
            wasyncore.loop(timeout=_LOOP_SECONDS, use_poll=True, map=self._sockets, count=1)
