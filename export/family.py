"""What each family's exporter provides to the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from onnxscript import nn
from pydantic import BaseModel

from models.manifest import DecoderInfo, TokenIds

from .decoder import Decoder, Embedding
from .deepseek_vision import VisionTower
from .layers import Precision


@dataclass(frozen=True)
class ModelParts:
    """The declared modules of a model, one for each graph; nothing is read yet."""

    vision: VisionTower
    embedding: Embedding
    decoder: Decoder

    def named(self) -> dict[str, nn.Module]:
        """By the name of the graph file, without its suffix."""
        return {"vision": self.vision, "embed": self.embedding, "decoder": self.decoder}


class FamilyExport(Protocol):
    """A checkpoint whose config has been read and understood."""

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of tensors that may be present and are not needed."""

    def parts(self, vision: Precision, decoder: Precision) -> ModelParts:
        """Declare the model's modules."""

    @property
    def sizes(self) -> DecoderInfo:
        """Sizes for the KV cache."""

    @property
    def image_rules(self) -> BaseModel:
        """The family's image settings, for the manifest."""

    def tokens(self, token_id: Mapping[str, int]) -> TokenIds:
        """Ids with a meaning of their own."""
