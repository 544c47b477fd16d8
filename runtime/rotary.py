"""Rotary angles from the host, for decoders whose positions are more than a count of tokens.

The graph rotates keys and queries by rows of a table of angles. A prompt has its own table, with a row for each token,
whatever axes the positions have. An answer's token has the same position in every axis, so decode steps share one table
by position, and each step only binds other row numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from models.manifest import RotaryInfo
from models.rotary import rotary_tables

from .buffers import Buffer
from .providers import Device, ort


class RotaryFeeds(Protocol):
    """Binds positions to the decoder's inputs."""

    def fit(self, capacity: int) -> None:
        """Make angles for ``capacity`` positions. Called whenever the KV cache's capacity may have changed."""

    def take_prompt(self, positions: np.ndarray) -> None:
        """Take the whole positions of the prompt whose chunk comes next, [axes, tokens]."""

    def bind_prompt(self, binding: ort.IOBinding, start: int, end: int) -> None:
        """Bind the angles of the prompt's tokens from ``start`` to ``end``."""

    def bind_prompts(self, binding: ort.IOBinding, prompts: Sequence[np.ndarray], length: int) -> None:
        """Bind the angles of the first ``length`` tokens of several prompts, whose positions are [axes, tokens] each.

        A shorter prompt is padded with tokens at position 0.
        """

    def place(self, positions: Sequence[int]) -> None:
        """Take the positions of the next step's tokens, one for each row."""

    def bind_step(self, binding: ort.IOBinding, rows: int) -> None:
        """Bind the angles of a step of ``rows`` rows; the binding holds until ``fit`` changes the capacity."""


def rotary_feeds(info: RotaryInfo | None, slots: int, dtype: np.dtype[Any], device: Device) -> RotaryFeeds:
    """``HostRotary`` for a model whose manifest asks for it, else ``NoFeeds``."""
    return NoFeeds() if info is None else HostRotary(info, slots, dtype, device)


class NoFeeds:
    """For graphs that count positions by themselves."""

    def fit(self, capacity: int) -> None:
        pass

    def take_prompt(self, positions: np.ndarray) -> None:
        pass

    def bind_prompt(self, binding: ort.IOBinding, start: int, end: int) -> None:
        pass

    def bind_prompts(self, binding: ort.IOBinding, prompts: Sequence[np.ndarray], length: int) -> None:
        pass

    def place(self, positions: Sequence[int]) -> None:
        pass

    def bind_step(self, binding: ort.IOBinding, rows: int) -> None:
        pass


class HostRotary:
    """Angles computed here: ``rotary_cos``, ``rotary_sin`` [table, head_dim / 2] and ``rotary_rows`` [batch, sequence].

    The kernel wants tables with a row for every position in the cache, used or not.
    """

    def __init__(self, info: RotaryInfo, slots: int, dtype: np.dtype[Any], device: Device) -> None:
        self._info, self._dtype, self._device = info, dtype, device
        self._rows = Buffer((slots, 1), np.dtype(np.int64), device)
        self._capacity = 0
        self._tables: dict[str, Buffer] = {}  # by position
        self._prompt: dict[str, np.ndarray] = {}  # by token
        self._positions: np.ndarray | None = None  # of the prompt whose angles ``_prompt`` holds

    def fit(self, capacity: int) -> None:
        if capacity == self._capacity:
            return
        for name, table in self._angles(np.tile(np.arange(capacity), (len(self._info.sections), 1))).items():
            self._tables[name] = Buffer(table.shape, self._dtype, self._device)
            self._tables[name].write(table)
        self._capacity = capacity

    def take_prompt(self, positions: np.ndarray) -> None:
        if positions is self._positions:  # the next chunk of the same prompt
            return
        self._positions = positions
        self._prompt = self._angles(self._axes(positions))

    def bind_prompt(self, binding: ort.IOBinding, start: int, end: int) -> None:
        for name, table in self._prompt.items():
            binding.bind_cpu_input(name, table)
        binding.bind_cpu_input("rotary_rows", np.arange(start, end)[None])

    def bind_prompts(self, binding: ort.IOBinding, prompts: Sequence[np.ndarray], length: int) -> None:
        axes = np.zeros((len(self._info.sections), len(prompts) * length), np.int64)
        for index, positions in enumerate(prompts):
            beginning = self._axes(positions)[:, :length]
            axes[:, index * length : index * length + beginning.shape[1]] = beginning
        for name, table in self._angles(axes).items():
            binding.bind_cpu_input(name, table)
        binding.bind_cpu_input("rotary_rows", np.arange(len(prompts) * length).reshape(len(prompts), length))

    def place(self, positions: Sequence[int]) -> None:
        self._rows.write(np.array(positions, np.int64)[:, None])

    def bind_step(self, binding: ort.IOBinding, rows: int) -> None:
        for name, table in self._tables.items():
            table.bind_input(binding, name, self._capacity)
        self._rows.bind_input(binding, "rotary_rows", rows)

    def _axes(self, positions: np.ndarray) -> np.ndarray:
        """Positions of a prompt's tokens, [sections, tokens]: one axis for each section of the channels."""
        return np.broadcast_to(positions, (len(self._info.sections), positions.shape[1]))

    def _angles(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        cos, sin = rotary_tables(positions, self._info.sections, self._info.theta)
        return {"rotary_cos": cos.astype(self._dtype), "rotary_sin": sin.astype(self._dtype)}
