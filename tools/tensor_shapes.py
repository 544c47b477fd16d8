"""Shapes of the modules that checkpoints are made of, by their published names.

A generator of random checkpoints (``tools/*_checkpoints.py``) puts these together in one order for ever: weights are
drawn in the order of the names, and another order would give every test other weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

Shapes: TypeAlias = Iterator[tuple[str, tuple[int, ...]]]
"""Names of tensors with their shapes."""


@dataclass(frozen=True)
class PageModelSizes:
    """What the models of a tower over patches and a dense decoder all have; the defaults make a small one."""

    # decoder
    hidden: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 96
    vocabulary: int = 151680
    max_positions: int = 8192
    # vision tower
    width: int = 48
    vision_layers: int = 2
    vision_heads: int = 3
    vision_mlp: int = 88
    patch: int = 14
    merge: int = 2


def linear(at: str, inputs: int, outputs: int) -> Shapes:
    """A matrix with a bias."""
    yield f"{at}.weight", (outputs, inputs)
    yield f"{at}.bias", (outputs,)


def norm(at: str, width: int) -> Shapes:
    """A LayerNorm: a scale and a bias."""
    yield f"{at}.weight", (width,)
    yield f"{at}.bias", (width,)


def rms_norms(at: str, names: Iterable[str], width: int) -> Shapes:
    """RMSNorms of one width, which have a scale alone."""
    for name in names:
        yield f"{at}.{name}.weight", (width,)


def gated_mlp(at: str, hidden: int, width: int) -> Shapes:
    """An MLP of three matrices without bias: gate, up and down."""
    yield f"{at}.gate_proj.weight", (width, hidden)
    yield f"{at}.up_proj.weight", (width, hidden)
    yield f"{at}.down_proj.weight", (hidden, width)


def attention(at: str, hidden: int, heads: int, kv_heads: int, head_dim: int, *, bias: bool = False) -> Shapes:
    """Self-attention of a decoder. bias : that queries, keys and values have one; the output never has."""
    for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        yield f"{at}.{name}_proj.weight", (count * head_dim, hidden)
        if bias:
            yield f"{at}.{name}_proj.bias", (count * head_dim,)
    yield f"{at}.o_proj.weight", (hidden, heads * head_dim)
