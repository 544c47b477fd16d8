"""Picks each row's candidates on the device that holds the logits; see ``runtime.candidates``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .buffers import Buffer
from .candidates import Candidates
from .providers import Device, ort
from .small_graphs import candidates_graph

# Candidates of each row. Filters forbid few of them, and a larger top k is rare. With 8, picking would take an eighth
# of the time.
CANDIDATES = 64


class Picker:
    """Picks the candidates of one buffer of logits [slots, vocabulary]."""

    def __init__(self, logits: Buffer, device: Device) -> None:
        slots, vocabulary = logits.shape
        self._logits = logits
        self._count = min(CANDIDATES, vocabulary)
        self._session = device.small_session(candidates_graph(self._count))
        self._best = np.empty((slots, self._count), np.float32)
        self._ids = np.empty((slots, self._count), np.int64)
        self._log_sum_exp = np.empty(slots, np.float32)
        self._bindings: dict[int, ort.IOBinding] = {}

    def pick(self, rows: int) -> Candidates:
        """Candidates of the first rows; the next call overwrites the arrays."""
        self._session.run_with_iobinding(self._bindings.get(rows) or self._bind(rows))
        return Candidates(
            self._ids[:rows], self._best[:rows], self._log_sum_exp[:rows], complete=self._count == self._logits.shape[1]
        )

    def _bind(self, rows: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        self._logits.bind_input(binding, "logits", rows)
        for name, array in (("best", self._best), ("ids", self._ids), ("log_sum_exp", self._log_sum_exp)):
            part = array[:rows]
            binding.bind_output(name, "cpu", 0, part.dtype.type, part.shape, part.ctypes.data)
        self._bindings[rows] = binding
        return binding


@dataclass(frozen=True)
class DeviceScores:
    """Logits on a device; see ``candidates.Scores``."""

    logits: Buffer
    candidates: Candidates

    def whole(self, row: int) -> np.ndarray:
        return self.logits.read_row(row)

    def __len__(self) -> int:
        return len(self.candidates.ids)
