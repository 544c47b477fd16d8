"""Numbers for Prometheus, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from runtime.library.memory import resident_mb
from runtime.requests import EngineLoad, Finished

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_RATES = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500)


class Metrics:
    """The server's metrics. One instance for each application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ocr_requests", "Generation requests by outcome", ["model", "outcome"], registry=self.registry
        )
        self.pages = Counter(
            "ocr_pages", "Pages of documents by how they ended", ["model", "finish"], registry=self.registry
        )
        self.tokens = Counter("ocr_tokens", "Tokens fed and generated", ["model", "kind"], registry=self.registry)
        self.first_token = Histogram(
            "ocr_time_to_first_token_seconds", "From submission to the first token", ["model"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.decode_rate = Histogram(
            "ocr_decode_tokens_per_second", "Of one request", ["model"], buckets=_RATES, registry=self.registry
        )
        self.stages = Histogram(
            "ocr_stage_seconds", "Time of a request by stage", ["model", "stage"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.memory = Gauge("ocr_memory_bytes", "Resident memory of the server", registry=self.registry)
        self.memory.set_function(lambda: resident_mb() * 1e6)

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read on demand."""
        Gauge(name, help_text, registry=self.registry).set_function(value)

    def watch_kinds(self, name: str, help_text: str, label: str, values: Callable[[], dict[str, float]]) -> None:
        """Add a gauge with a row for each kind, read on demand."""
        gauge = Gauge(name, help_text, [label], registry=self.registry)
        for kind in values():
            gauge.labels(kind).set_function(lambda kind=kind: values()[kind])  # type: ignore[misc]  # lambda's default

    def watch_engines(self, loads: Callable[[], Iterable[tuple[str, EngineLoad]]]) -> None:
        """Add gauges of each engine, read on demand. loads : returns each engine's load with its model's id."""
        self.registry.register(_Engines(loads))

    def finished(self, model: str, outcome: str, finished: Finished | None) -> None:
        """Count one finished generation request. ``model`` is "" for one refused before its model was known."""
        self.requests.labels(model, outcome).inc()
        if finished is None:
            return
        usage, timings = finished.usage, finished.timings
        self.tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self.tokens.labels(model, "completion").inc(usage.completion_tokens)
        for stage in ("queued", "prepare", "vision", "prefill", "decode"):
            self.stages.labels(model, stage).observe(getattr(timings, stage))
        if usage.completion_tokens:
            self.first_token.labels(model).observe(timings.first_token)
        if (rate := decode_rate(finished)) is not None:
            self.decode_rate.labels(model).observe(rate)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Engines(Collector):
    """Makes the gauges of engines anew each time, as engines come and go with their models."""

    def __init__(self, loads: Callable[[], Iterable[tuple[str, EngineLoad]]]) -> None:
        self._loads = loads

    def collect(self) -> Iterator[Metric]:
        labels = ["model", "device"]
        slots = GaugeMetricFamily("ocr_engine_slots", "Rows that an engine decodes together", labels=labels)
        active = GaugeMetricFamily("ocr_engine_active", "Requests that an engine works on", labels=labels)
        queued = GaugeMetricFamily("ocr_engine_queued", "Requests that wait inside an engine", labels=labels)
        alive = GaugeMetricFamily("ocr_engine_alive", "1 while an engine takes requests", labels=labels)
        for model, load in self._loads():
            for gauge, value in (
                (slots, load.slots),
                (active, load.active),
                (queued, load.queued),
                (alive, load.alive),
            ):
                gauge.add_metric([model, load.device], float(value))
        yield from (slots, active, queued, alive)


def decode_rate(finished: Finished) -> float | None:
    """Decoded tokens per second; the first token belongs to the prefill."""
    steps = finished.usage.completion_tokens - 1
    return steps / finished.timings.decode if steps > 0 and finished.timings.decode > 0 else None
