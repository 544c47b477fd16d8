"""Angles of rotary position embeddings (RoFormer, arXiv 2104.09864). Used by the exporter and the runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def rotary_tables(positions: np.ndarray, sections: Sequence[int], theta: float) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of position * theta^(-i / n) for the n pairs of channels, [tokens, n] float32 each.

    positions : [axes, tokens]. sections : how many pairs each axis turns, the first axis the first (multimodal rotary
    positions, arXiv 2409.12191).

    Computed in float32 step by step like transformers, so that both round alike.
    """
    pairs = sum(sections)
    powers = np.arange(0, 2 * pairs, 2, dtype=np.float32) / np.float32(2 * pairs)
    frequencies = (1.0 / np.power(np.float32(theta), powers)).astype(np.float32)
    axis = np.repeat(np.arange(len(sections)), sections)
    angles = np.take(positions.T.astype(np.float32), axis, axis=1) * frequencies
    return np.cos(angles), np.sin(angles)
