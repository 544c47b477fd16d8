"""The metrics of all replicas as one text, since Prometheus scrapes one address and replicas come and go behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

SILENCE = 30.0  # seconds after which a replica that has sent nothing counts as gone


class ReplicaMetrics:
    """The latest metrics of each replica. An application has one of these, in an actor of its own."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[float, str]] = {}

    def put(self, replica: str, text: str) -> None:
        """Take the metrics of one replica, in Prometheus' text format."""
        self._latest[replica] = (time.monotonic(), text)

    def text(self) -> bytes:
        """The metrics of all replicas that have not gone, in Prometheus' text format."""
        until = time.monotonic() - SILENCE
        self._latest = {replica: told for replica, told in self._latest.items() if told[0] > until}
        return merged({replica: text for replica, (_, text) in self._latest.items()})


def merged(texts: Mapping[str, str]) -> bytes:
    """Prometheus' text of several replicas as one, each series with the label ``replica``."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(texts))
    return generate_latest(registry)


class _Merged:
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in sorted(self._texts.items()):
            for family in text_string_to_metric_families(text):
                if family.name not in families:
                    families[family.name] = Metric(family.name, family.documentation, family.type)
                for sample in family.samples:
                    families[family.name].samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
        yield from families.values()
