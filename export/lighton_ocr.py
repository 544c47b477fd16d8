"""LightOnOCR checkpoints as graphs: Pixtral's tower, a projection, and a Qwen3 decoder with a tied head.

``model_type`` in config.json is another model's (mistral3); ``architectures`` identifies the family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from models.chat_template import PromptRules
from models.lighton_ocr.images import ImageRules
from models.manifest import TokenIds

from .checkpoint import Checkpoint
from .config_values import check_decoder, check_values, checked_part, first, required, rope_theta, size
from .decoder import DecoderSpec
from .decoder_export import sized_decoder
from .export_errors import ExportError
from .layers import Precision
from .mergers import LinearMerger, MergerSpec
from .page_export import PageExport
from .prompt_files import prompt_rules
from .rms_vision import Tower, TowerNames, TowerSpec

VISION, PROJECTION = "model.vision_encoder", "model.vision_projection"
NAMES = TowerNames(
    patches=f"{VISION}.patch_conv", entry_norm=f"{VISION}.ln_pre", layers=f"{VISION}.transformer.layers",
    exit_norm=f"{PROJECTION}.norm", norm1="attention_norm",
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"), proj="attention.o_proj", norm2="ffn_norm",
    gate="feed_forward.gate_proj", up="feed_forward.up_proj", down="feed_forward.down_proj",
)  # fmt: skip

# Values that the graphs implement, the default first; others would change the arithmetic.
_REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "multimodal_projector_bias": (False,),
    "projector_hidden_act": ("gelu",),
    "vision_feature_layer": (-1,),
}
_REQUIRED_OF_TEXT: Mapping[str, tuple[Any, ...]] = {"hidden_act": ("silu",)}
_REQUIRED_OF_VISION: Mapping[str, tuple[Any, ...]] = {"hidden_act": ("silu",), "num_channels": (3,)}
_EPSILON = 1e-5  # epsilon of the tower's norms, by Pixtral's published code
_PLACEHOLDER, _END = "<|image_pad|>", "<|im_end|>"


class LightOnOcrExport(PageExport):
    """One checkpoint of the family, understood; see ``export.family.FamilyExport``."""

    names = NAMES
    decoder_at = "model.language_model"

    def __init__(self, checkpoint: Checkpoint, processor: Mapping[str, Any]) -> None:
        self._config = config = checkpoint.config
        check_values(config, _REQUIRED, "config.json")
        text = required(config, "text_config")
        tied = first(config.get("tie_word_embeddings"), text.get("tie_word_embeddings"), True)
        decoder = decoder_spec(text, tied=tied and not checkpoint.has("lm_head.weight"))
        super().__init__(checkpoint, processor, decoder, tower_spec(config, decoder.rms_epsilon))
        self.merger = MergerSpec(self.tower_spec.width, size(config, "spatial_merge_size"), decoder.hidden)

    def tower(self, precision: Precision) -> Tower:
        return tower(self.tower_spec, self.merger, precision)

    @property
    def image_rules(self) -> ImageRules:
        """The checkpoint's image settings."""
        spec, vision, images = self.tower_spec, self._config["vision_config"], self.images
        longest = (images.values.get("size") or {}).get("longest_edge")
        if type(longest) is not int or longest < spec.patch * self.merger.merge:
            raise ExportError(f"{images.where}: longest_edge is {longest!r}; expected pixels, such as 1540")
        return ImageRules(
            head_dim=spec.head_dim, longest_edge=longest,
            rope_theta=rope_theta(vision, 10_000.0),
            **images.patch_rules(patch=spec.patch, merge=self.merger.merge),
        )  # fmt: skip

    def tokens(self, token_id: Mapping[str, int]) -> TokenIds:
        """Ids of the tokens with a meaning."""
        image, text = required(self._config, "image_token_id"), self._config["text_config"]
        return self.token_ids(token_id, image, _PLACEHOLDER, (_END,), config=text)

    def prompt_rules(self, token_id: Mapping[str, int], special: Sequence[str]) -> PromptRules:
        """The chat template, the names that it may use, and the control tokens that prompts must not hold."""
        return prompt_rules(self.folder, required(self._config, "image_token_id"), token_id, special)


def decoder_spec(config: Mapping[str, Any], *, tied: bool) -> DecoderSpec:
    """The decoder's sizes and rules from its part of config.json.

    Raises
    ------
    ExportError
        when a key is missing or has a value that the graphs do not implement.
    """
    check_values(config, _REQUIRED_OF_TEXT, "config.json: text_config")
    check_decoder(config)
    sized = sized_decoder(config, theta=1e6, epsilon=1e-6)
    return replace(sized, head_dim=size(config, "head_dim"), qk_norm=True, tied_head=tied)


def tower_spec(config: Mapping[str, Any], decoder_epsilon: float) -> TowerSpec:
    """The tower's sizes. The tower's last norm is the projection's first, whose epsilon is the decoder's.

    Raises
    ------
    ExportError
        when a key is missing or has a value that the graph does not implement.
    """
    vision = checked_part(config, "vision_config", _REQUIRED_OF_VISION)
    width, heads = size(vision, "hidden_size"), size(vision, "num_attention_heads")
    if vision.get("head_dim", width // heads) * heads != width:
        raise ExportError(f"config.json: vision_config: {heads} heads of {vision['head_dim']} are not {width} channels")
    return TowerSpec(
        width=width,
        layers=size(vision, "num_hidden_layers"),
        heads=heads,
        mlp_width=size(vision, "intermediate_size"),
        patch=size(vision, "patch_size"),
        epsilon=_EPSILON,
        patch_bias=False,
        entry_norm=True,
        exit_epsilon=decoder_epsilon,
    )


def tower(spec: TowerSpec, merger: MergerSpec, precision: Precision) -> Tower:
    """The whole tower."""
    return Tower(NAMES, spec, LinearMerger(PROJECTION, merger, precision), precision)
