"""PaddleOCR-VL checkpoints as graphs: specs and modules from the folder's JSON files.

Revisions of the model differ in their image limits and in their chat template: both are read from the folder and go
into the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from models.chat_template import PromptRules
from models.manifest import TokenIds
from models.paddleocr_vl.images import ImageRules

from .checkpoint import Checkpoint
from .config_values import (
    check_decoder,
    check_values,
    checked_part,
    first,
    optional_json,
    required,
    rope_theta,
    rope_values,
    size,
)
from .decoder import DecoderSpec
from .decoder_export import DecoderExport, checked_sections, sized_decoder
from .export_errors import ExportError
from .family import GraphPart
from .image_files import ImageFile
from .layers import Precision
from .outliers import OutlierSite, block_sites
from .prompt_files import prompt_rules
from .siglip_vision import SiglipSpec, SiglipTower, tower_graph

VISION, PROJECTOR = "visual.vision_model", "mlp_AR"

# In some revisions of the checkpoint, but not used: SigLIP's pooling head, and positions for packed images.
UNUSED = (f"{VISION}.head.", f"{VISION}.embeddings.packing_position_embedding.")

# Values that the graphs implement, the default first; others would change the arithmetic.
_REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "use_3d_rope": (True,),
    "rope_is_neox_style": (True,),
}
_REQUIRED_OF_VISION: Mapping[str, tuple[Any, ...]] = {"hidden_act": ("gelu_pytorch_tanh",), "num_channels": (3,)}

_MROPE_SECTIONS = (16, 24, 24)  # defaults of the config


class PaddleOcrVlExport(DecoderExport):
    """One checkpoint of the family, understood; see ``export.family.FamilyExport``."""

    unused = UNUSED

    def __init__(self, checkpoint: Checkpoint, processor: Mapping[str, Any]) -> None:
        folder, config = checkpoint.folder, checkpoint.config
        text = {**config, **config.get("text_config", {})}
        # Checkpoints of transformers 5 say that head and embedding are tied even where both are saved.
        tied = bool(text.get("tie_word_embeddings")) and not checkpoint.has("lm_head.weight")
        super().__init__(replace(decoder_spec(text), tied_head=tied))
        self._tower = tower_spec(config, checkpoint, self.decoder.hidden)
        self._theta = rope_theta(required(config, "vision_config"), 10_000.0)
        self._images = ImageFile.of(folder, processor)
        self._generation = optional_json(folder / "generation_config.json")
        self._folder, self._text, self._config = folder, text, config

    def vision(self, precision: Precision) -> GraphPart:
        tower = SiglipTower(VISION, PROJECTOR, self._tower, precision)
        return GraphPart(tower, partial(tower_graph, tower))

    @property
    def vision_outliers(self) -> list[OutlierSite]:
        sites: list[OutlierSite] = []
        for i in range(self._tower.layers):
            at = f"{VISION}.encoder.layers.{i}"
            sites += block_sites(
                norm1=f"{at}.layer_norm1", qkv=[f"{at}.self_attn.{n}_proj" for n in "qkv"],
                proj=f"{at}.self_attn.out_proj", norm2=f"{at}.layer_norm2", up=f"{at}.mlp.fc1", down=f"{at}.mlp.fc2",
                width=self._tower.width, mlp_width=self._tower.mlp_width,
            )  # fmt: skip
        return sites

    @property
    def image_rules(self) -> ImageRules:
        """The checkpoint's image settings."""
        tower = self._tower
        return ImageRules(
            grid=tower.grid, head_dim=tower.head_dim, rope_theta=self._theta, **self._images.limits("PaddleOCR-VL"),
            **self._images.patch_rules(patch=tower.patch, merge=tower.merge),
        )  # fmt: skip

    def tokens(self, token_id: Mapping[str, int]) -> TokenIds:
        """Ids of the tokens with a meaning, by the configs; ``token_id`` is the tokenizer's vocabulary."""
        configs = (self._generation, self._text)
        eos = first(*(config.get("eos_token_id") for config in configs), token_id.get("</s>"))
        bos = first(self._text.get("bos_token_id"), token_id.get("<s>"))
        image = required(self._config, "image_token_id")
        if eos is None or bos is None:
            raise ExportError("no eos_token_id or bos_token_id in the configs, and no </s> or <s> in the tokenizer")
        if image not in token_id.values():
            raise ExportError(f"the tokenizer has no token {image}, which marks an image; use the model's own one")
        return TokenIds(bos=bos, eos=tuple(eos) if isinstance(eos, list) else (eos,), image=image)

    def prompt_rules(self, token_id: Mapping[str, int], special: Sequence[str]) -> PromptRules:
        """The chat template, the names that it may use, and the control tokens that prompts must not hold."""
        return prompt_rules(self._folder, required(self._config, "image_token_id"), token_id, special)


def decoder_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder's sizes and rules from its part of config.json.

    Raises
    ------
    ExportError
        when a key is missing or has a value that the graphs do not implement.
    """
    check_values(config, _REQUIRED, "config.json")
    check_decoder(config, rope_types=("default", "mrope"))
    sized = sized_decoder(config, theta=500_000.0, epsilon=1e-5)
    given = tuple(rope_values(config).get("mrope_section") or _MROPE_SECTIONS)
    return replace(sized, rotary_sections=checked_sections(given, sized.head_dim, "config.json"))


def tower_spec(config: Mapping[str, Any], checkpoint: Checkpoint, hidden: int) -> SiglipSpec:
    """The tower's sizes; the position table's size is its tensor's."""
    vision = checked_part(config, "vision_config", _REQUIRED_OF_VISION)
    positions = checkpoint.shape(f"{VISION}.embeddings.position_embedding.weight")[0]
    grid = round(positions**0.5)
    if grid**2 != positions:
        raise ExportError(f"the position table has {positions} rows; expected a square number")
    return SiglipSpec(
        width=size(vision, "hidden_size"),
        layers=size(vision, "num_hidden_layers"),
        heads=size(vision, "num_attention_heads"),
        mlp_width=size(vision, "intermediate_size"),
        patch=size(vision, "patch_size"),
        grid=grid,
        merge=size(vision, "spatial_merge_size"),
        hidden=hidden,
        epsilon=float(vision.get("layer_norm_eps", 1e-6)),
    )
