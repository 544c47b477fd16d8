"""Sessions that tests put around those of a decoder or a tower, by their ``wrap_sessions`` and ``wrap_session``."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from runtime.decoder import Decoder
from runtime.providers import ort
from runtime.vision import VisionTower


class WatchedSession:
    """Counts the bindings and runs of a decoder's session, and notes what it was run with."""

    def __init__(self, inner: Any, calls: Counter[str]) -> None:
        self.inner, self._calls = inner, calls
        self.recordings: list[str] = []
        self.newest: Any = None  # binding that was run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def io_binding(self) -> Any:
        self._calls["bindings"] += 1
        return self.inner.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        self._calls["runs"] += 1
        if options is not None:
            self.recordings.append(options.get_run_config_entry("gpu_graph_id"))
        self.newest = binding
        self.inner.run_with_iobinding(binding, options)


def watch(decoder: Decoder, calls: Counter[str]) -> WatchedSession:
    """Watch both sessions of a decoder; returns that of the decoder's own graph."""
    watched: list[WatchedSession] = []

    def wrap(session: Any) -> WatchedSession:
        watched.append(WatchedSession(session, calls))
        return watched[-1]

    decoder.wrap_sessions(wrap)
    return watched[1]


class FedSession:
    """A tower's session that keeps what each run was fed, bound or not."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.fed: list[dict[str, np.ndarray]] = []

    def run(self, outputs: list[str], fed: dict[str, np.ndarray], options: Any) -> Any:
        self.fed.append(fed)
        return self._inner.run(outputs, fed, options)

    def io_binding(self) -> FedBinding:
        return FedBinding(self._inner)

    def run_with_iobinding(self, binding: FedBinding, options: Any) -> None:
        self.fed.append(binding.fed)
        self._inner.run_with_iobinding(binding, options)


class FedBinding(ort.IOBinding):  # type: ignore[misc]  # ONNX Runtime has no types
    def __init__(self, session: Any) -> None:
        super().__init__(session)
        self.fed: dict[str, np.ndarray] = {}

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        self.fed[name] = array
        super().bind_cpu_input(name, array)


def watch_tower(tower: VisionTower) -> FedSession:
    """Keep what a tower's session is fed from now on."""
    watched: list[FedSession] = []

    def wrap(session: Any) -> FedSession:
        watched.append(FedSession(session))
        return watched[0]

    tower.wrap_session(wrap)
    return watched[0]
