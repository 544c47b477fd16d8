"""dots.ocr and dots.mocr checkpoints as graphs: the tower without biases, and a Qwen2 decoder that counts tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from models.chat_template import PromptRules
from models.dots_ocr.images import ImageRules
from models.dots_ocr.prompts import PLACEHOLDER, SERVING_TEMPLATE
from models.manifest import TokenIds

from .checkpoint import Checkpoint
from .config_values import check_decoder, check_values, check_width, checked_part, required, size
from .decoder import DecoderSpec
from .decoder_export import sized_decoder
from .export_errors import ExportError
from .layers import Precision
from .mergers import MergerSpec, MlpMerger
from .page_export import PageExport
from .prompt_files import control_tokens
from .rms_vision import Tower, TowerNames, TowerSpec

VISION = "vision_tower"
NAMES = TowerNames(
    patches=f"{VISION}.patch_embed.patchifier.proj", entry_norm=f"{VISION}.patch_embed.patchifier.norm",
    layers=f"{VISION}.blocks", exit_norm=f"{VISION}.post_trunk_norm", norm1="norm1", qkv=("attn.qkv",),
    proj="attn.proj", norm2="norm2", gate="mlp.fc1", up="mlp.fc3", down="mlp.fc2",
)  # fmt: skip

# Values that the graphs implement, the default first; others would change the arithmetic.
_REQUIRED: Mapping[str, tuple[Any, ...]] = {"hidden_act": ("silu",), "attention_bias": (True,)}
_REQUIRED_OF_VISION: Mapping[str, tuple[Any, ...]] = {
    "num_channels": (3,),
    "temporal_patch_size": (1,),
    "post_norm": (True,),
    "use_bias": (False,),
    "is_causal": (False,),
}
_MERGER_EPSILON = 1e-6  # published code
# <|endoftext|> ends an answer, too, as only generation_config.json says.
_END = "<|endofassistant|>"


class DotsOcrExport(PageExport):
    """One checkpoint of the family, understood; see ``export.family.FamilyExport``."""

    names = NAMES

    def __init__(self, checkpoint: Checkpoint, processor: Mapping[str, Any]) -> None:
        self._config = config = checkpoint.config
        tied = bool(config.get("tie_word_embeddings")) and not checkpoint.has("lm_head.weight")
        decoder = decoder_spec(config, tied=tied)
        super().__init__(checkpoint, processor, decoder, tower_spec(config))
        self.merger = merger_spec(config, decoder.hidden)

    def tower(self, precision: Precision) -> Tower:
        return tower(self.tower_spec, self.merger, precision)

    @property
    def image_rules(self) -> ImageRules:
        """The checkpoint's image settings."""
        spec = self.tower_spec
        return ImageRules(
            head_dim=spec.head_dim, **self.images.limits("dots.ocr"),
            **self.images.patch_rules(patch=spec.patch, merge=self.merger.merge),
        )  # fmt: skip

    def tokens(self, token_id: Mapping[str, int]) -> TokenIds:
        """Ids of the tokens with a meaning."""
        return self.token_ids(token_id, required(self._config, "image_token_id"), PLACEHOLDER, (_END,))

    def prompt_rules(self, token_id: Mapping[str, int], special: Sequence[str]) -> PromptRules:
        """The form in which the authors serve the model.

        Raises
        ------
        ExportError
            when the tokenizer would read a part of the form as plain text.
        """
        tags = [f"<|{name}|>" for name in ("user", "img", "endofimg", "endofuser", "assistant")]
        if missing := [tag for tag in tags if tag not in token_id]:
            raise ExportError(f"the tokenizer has no token {missing[0]}, which prompts have; use the model's own one")
        control = control_tokens([*special, *tags, PLACEHOLDER, _END])
        return PromptRules(chat_template=SERVING_TEMPLATE, placeholder=PLACEHOLDER, control_tokens=control)


def decoder_spec(config: Mapping[str, Any], *, tied: bool) -> DecoderSpec:
    """The decoder's sizes and rules from config.json.

    Raises
    ------
    ExportError
        when a key is missing or has a value that the graphs do not implement.
    """
    check_values(config, _REQUIRED, "config.json")
    check_decoder(config, computed=("attention_bias",))
    return replace(sized_decoder(config, theta=1e6, epsilon=1e-6), qkv_bias=True, tied_head=tied)


def tower_spec(config: Mapping[str, Any]) -> TowerSpec:
    """The tower's sizes.

    Raises
    ------
    ExportError
        when a key is missing or has a value that the graph does not implement.
    """
    vision = checked_part(config, "vision_config", _REQUIRED_OF_VISION)
    return TowerSpec(
        width=size(vision, "embed_dim"),
        layers=size(vision, "num_hidden_layers"),
        heads=size(vision, "num_attention_heads"),
        mlp_width=size(vision, "intermediate_size"),
        patch=size(vision, "patch_size"),
        epsilon=float(vision.get("rms_norm_eps", 1e-5)),
        patch_bias=True,
        entry_norm=True,
    )


def merger_spec(config: Mapping[str, Any], hidden: int) -> MergerSpec:
    """The merger's sizes. hidden : the decoder's width; see ``check_width``."""
    vision = required(config, "vision_config")
    check_width(vision, "hidden_size", hidden)
    return MergerSpec(size(vision, "embed_dim"), size(vision, "spatial_merge_size"), hidden, _MERGER_EPSILON)


def tower(spec: TowerSpec, merger: MergerSpec, precision: Precision) -> Tower:
    """The whole tower."""
    return Tower(NAMES, spec, MlpMerger(f"{VISION}.merger", merger, precision), precision)
