"""Shared by every family's exporter: the decoder's graphs and sizes, from config.json."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from models.manifest import DecoderInfo, RotaryInfo

from .config_values import rope_theta, size
from .decoder import Decoder, DecoderSpec, Embedding, decoder_graph, embedding_graph
from .export_errors import ExportError
from .family import GraphPart, Parts
from .layers import Precision


class DecoderExport(ABC):
    """Base of exporters, see ``export.family.FamilyExport``; a family adds its tower, tokens and prompts.

    decoder_at : the decoder's path in the checkpoint.
    """

    unused: tuple[str, ...] = ()
    decoder_at: ClassVar[str] = "model"

    def __init__(self, decoder: DecoderSpec) -> None:
        self.decoder = decoder

    @abstractmethod
    def vision(self, precision: Precision) -> GraphPart:
        """The vision graph."""

    def parts(self, vision: Precision, decoder: Precision) -> Parts:
        embedding = Embedding(f"{self.decoder_at}.embed_tokens.weight", self.decoder, decoder)
        layers = Decoder(self.decoder_at, "lm_head", self.decoder, decoder)
        return {
            "vision": self.vision(vision),
            "embed": GraphPart(embedding, partial(embedding_graph, embedding)),
            "decoder": GraphPart(layers, partial(decoder_graph, layers)),
        }

    @property
    def sizes(self) -> DecoderInfo:
        spec = self.decoder
        return DecoderInfo(
            layers=spec.layers, hidden_size=spec.hidden, kv_heads=spec.kv_heads, head_dim=spec.head_dim,
            vocabulary=spec.vocabulary, max_length=spec.max_length, window=spec.window,
            rotary=RotaryInfo(theta=spec.rope_theta, sections=spec.rotary_sections) if spec.rotary_sections else None,
        )  # fmt: skip


def sized_decoder(config: Mapping[str, Any], *, theta: float, epsilon: float) -> DecoderSpec:
    """A decoder of dense layers in config.json's sizes; a family sets its other rules in the result.

    config : the decoder's part of config.json. theta, epsilon : defaults.

    Raises
    ------
    ExportError
        when a key is missing or not a size.
    """
    hidden, heads, layers = (size(config, key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    return DecoderSpec(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        mlp_width=size(config, "intermediate_size"),
        dense_layers=layers,
        moe=None,
        vocabulary=size(config, "vocab_size"),
        max_length=size(config, "max_position_embeddings"),
        rope_theta=rope_theta(config, theta),
        rms_epsilon=float(config.get("rms_norm_eps", epsilon)),
    )


def checked_sections(sections: tuple[int, ...], head_dim: int, where: str) -> tuple[int, ...]:
    """The channel pairs of time, row and column. where : the config's part, for the message.

    Raises
    ------
    ExportError
        unless there are three that add up to all pairs of a head.
    """
    if len(sections) != 3 or sum(sections) != head_dim // 2:
        raise ExportError(f"{where}: mrope_section is {list(sections)}; expected three that sum to {head_dim // 2}")
    return sections
