"""What each family's exporter provides to the pipeline."""

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
class Part:
    """One graph of a model.

    module : its layers with their weights' recipes; nothing is read yet.
    declare : emits the nodes, once.
    """

    module: nn.Module
    declare: Callable[[], ir.Graph]


Parts = Mapping[GraphName, Part]


class FamilyExport(Protocol):
    """A checkpoint whose config has been read and understood."""

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of tensors that may be present and are not needed."""

    def parts(self, vision: Precision, decoder: Precision) -> Parts:
        """Set up the model's modules in the given precisions."""

    @property
    def vision_outliers(self) -> Sequence[OutlierSite]:
        """Where the report plants outlier channels: the inputs of the vision tower's matrices."""

    @property
    def sizes(self) -> DecoderInfo:
        """Sizes for the KV cache."""

    @property
    def image_rules(self) -> BaseModel:
        """The family's image settings, for the manifest."""

    def tokens(self, token_id: Mapping[str, int]) -> TokenIds:
        """Ids with a meaning of their own."""

    def prompt_rules(self, token_id: Mapping[str, int], special: Sequence[str]) -> BaseModel:
        """How the checkpoint wants prompts written, for the manifest; empty where the family knows it by itself.

        special : texts of the tokens that the tokenizer calls special.
        """
