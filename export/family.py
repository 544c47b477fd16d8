"""The interface of families' exporters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import onnx_ir as ir
from onnxscript import nn
from pydantic import BaseModel

from models.manifest import DecoderInfo, TokenIds

from .layers import Precision
from .outliers import OutlierSite

GraphName = Literal["vision", "embed", "decoder"]


@dataclass(frozen=True)
class GraphPart:
    """One graph of a model.

    module : layers with recipes of their weights; no weights are read yet.
    declare : emits the nodes, once.
    """

    module: nn.Module
    declare: Callable[[], ir.Graph]


Parts = Mapping[GraphName, GraphPart]


class FamilyExport(Protocol):
    """A checkpoint whose config has been read and checked."""

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of tensors that may be present and are not needed."""

    def parts(self, vision: Precision, decoder: Precision) -> Parts:
        """Set up the model's modules in the given precisions."""

    @property
    def vision_outliers(self) -> Sequence[OutlierSite]:
        """Sites where the report plants outlier channels: the inputs of the vision tower's matrices."""

    @property
    def sizes(self) -> DecoderInfo:
        """Sizes for the KV cache."""

    @property
    def image_rules(self) -> BaseModel:
        """The family's image settings, for the manifest."""

    def tokens(self, token_id: Mapping[str, int]) -> TokenIds:
        """Ids of special tokens."""

    def prompt_rules(self, token_id: Mapping[str, int], special: Sequence[str]) -> BaseModel:
        """The checkpoint's rules for prompts, for the manifest; empty where the family has its own.

        special : texts of the tokenizer's special tokens.
        """
