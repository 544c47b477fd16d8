"""DeepSeek-OCR checkpoints as graphs: specs and modules from config.json and tensor shapes.

Sizes that the published config leaves unsaid (MLP widths, the neck, the window) are read from tensor shapes, so a model
of other sizes needs no code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from pydantic import BaseModel

from models.deepseek_ocr.images import ImageRules
from models.manifest import TokenIds

from .checkpoint import Checkpoint
from .config_values import check_decoder, check_values, required, size
from .decoder import DecoderSpec
from .decoder_export import DecoderExport, sized_decoder
from .deepseek_vision import ClipSpec, SamClipTower, VisionSpec, vision_graph
from .experts import MoeSpec
from .export_errors import ExportError
from .family import GraphPart
from .layers import Precision
from .outliers import OutlierSite, block_sites
from .sam_vision import SamSpec

# In the checkpoint, but not used: SAM's map replaces CLIP's own patch embeddings.
UNUSED = ("model.vision_model.embeddings.patch_embedding.", "model.vision_model.embeddings.position_ids")

# Values that the graphs implement; others would change the arithmetic.
_REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "use_mla": (False,),
    "topk_method": ("greedy",),
    "scoring_func": ("softmax",),
    "hidden_act": ("silu",),
    "moe_layer_freq": (1,),
    "tie_word_embeddings": (False,),
}


class NoPromptRules(BaseModel):
    """Empty: the family writes its prompts by itself."""


class DeepseekExport(DecoderExport):
    """Shared by the generations: decoder, tokens and places of files. Each adds its vision tower."""

    computed: ClassVar[Collection[str]] = ()  # keys of the decoder's config that a family checks by itself

    def __init__(self, checkpoint: Checkpoint, processor: Mapping[str, Any]) -> None:
        config = checkpoint.config
        super().__init__(decoder_spec(decoder_config(config), self.computed))
        self._processor = processor
        self._config = config

    def tokens(self, token_id: Mapping[str, int]) -> TokenIds:
        """Ids of the tokens with a meaning; ``token_id`` is the tokenizer's vocabulary."""
        config = decoder_config(self._config)
        image = self._processor.get("image_token", "<image>")
        if image not in token_id:
            raise ExportError(f"the tokenizer has no token {image!r}, which marks an image; use the model's own one")
        eos = required(config, "eos_token_id")
        return TokenIds(
            bos=required(config, "bos_token_id"),
            eos=tuple(eos) if isinstance(eos, list) else (eos,),
            image=token_id[image],
        )

    def prompt_rules(self, token_id: Mapping[str, int], special: Sequence[str]) -> BaseModel:
        """None: the published checkpoint has no chat template."""
        return NoPromptRules()


class DeepseekOcrExport(DeepseekExport):
    """One checkpoint of the family, understood; see ``export.family.FamilyExport``."""

    unused = UNUSED

    def __init__(self, checkpoint: Checkpoint, processor: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, processor)
        self._vision = vision_spec(self._config, checkpoint, self.decoder.hidden)

    def vision(self, precision: Precision) -> GraphPart:
        tower = SamClipTower("model", self._vision, precision)
        return GraphPart(tower, partial(vision_graph, tower))

    @property
    def vision_outliers(self) -> list[OutlierSite]:
        sites, clip = sam_outliers(self._vision.sam), self._vision.clip
        for i in range(clip.layers):
            at = f"model.vision_model.transformer.layers.{i}"
            sites += block_sites(
                norm1=f"{at}.layer_norm1", qkv=[f"{at}.self_attn.qkv_proj"], proj=f"{at}.self_attn.out_proj",
                norm2=f"{at}.layer_norm2", up=f"{at}.mlp.fc1", down=f"{at}.mlp.fc2", width=clip.width,
                mlp_width=clip.mlp_width,
            )  # fmt: skip
        return sites

    @property
    def image_rules(self) -> ImageRules:
        """The image settings: processor_config.json's, else in proportion to the published ones."""
        sam = self._vision.sam
        side = sam.grid * sam.patch
        rules: dict[str, Any] = {
            "base_size": side,  # 1024 as published
            "image_size": side * 5 // 8,  # 640 as published
            "max_tiles": self._processor.get("max_tiles"),
            "mean": self._processor.get("image_mean"),
            "std": self._processor.get("image_std"),
        }
        rules |= {name: self._processor[name] for name in ("base_size", "image_size") if name in self._processor}
        return ImageRules(
            patch_size=sam.patch, downsample=4, grid=sam.grid, window=sam.window, clip_grid=self._vision.clip.grid,
            **{name: value for name, value in rules.items() if value is not None},
        )  # fmt: skip


def sam_outliers(sam: SamSpec) -> list[OutlierSite]:
    """Where outlier channels can be planted in SAM's blocks."""
    sites: list[OutlierSite] = []
    for i in range(sam.layers):
        at = f"model.sam_model.blocks.{i}"
        sites += block_sites(
            norm1=f"{at}.norm1", qkv=[f"{at}.attn.qkv"], proj=f"{at}.attn.proj", norm2=f"{at}.norm2",
            up=f"{at}.mlp.lin1", down=f"{at}.mlp.lin2", width=sam.width, mlp_width=sam.mlp_width,
        )  # fmt: skip
    return sites


def decoder_spec(config: Mapping[str, Any], computed: Collection[str] = ()) -> DecoderSpec:
    """The decoder's sizes and rules from its part of config.json. computed : see ``check_decoder``.

    Raises
    ------
    ExportError
        when a key is missing or has a value that the graphs do not implement.
    """
    check_values(config, _REQUIRED, "config.json")
    check_decoder(config, computed=computed)
    sized = sized_decoder(config, theta=10_000.0, epsilon=1e-6)
    dense = config.get("first_k_dense_replace", 0)
    moe = None
    if config.get("n_routed_experts") and dense < sized.layers:
        width = size(config, "moe_intermediate_size")
        renormalize = bool(config.get("norm_topk_prob", False))
        moe = MoeSpec(
            experts=config["n_routed_experts"],
            top_k=size(config, "num_experts_per_tok"),
            width=width,
            shared_width=width * (config.get("n_shared_experts") or 0),
            renormalize=renormalize,
            # The published routing applies the factor only without renormalisation.
            scale=1.0 if renormalize else float(config.get("routed_scaling_factor", 1.0)),
        )
    return replace(sized, dense_layers=dense, moe=moe)


def vision_spec(config: Mapping[str, Any], checkpoint: Checkpoint, hidden: int) -> VisionSpec:
    """The tower's sizes: from ``vision_config``, else from tensor shapes."""
    clip = required(required(required(config, "vision_config"), "width"), "clip-l-14-224")
    return VisionSpec(
        sam=sam_spec(config, checkpoint),
        clip=ClipSpec(
            width=size(clip, "width"),
            layers=size(clip, "layers"),
            heads=size(clip, "heads"),
            mlp_width=checkpoint.shape("model.vision_model.transformer.layers.0.mlp.fc1.weight")[0],
            grid=size(clip, "image_size") // size(clip, "patch_size"),
        ),
        hidden=hidden,
    )


def sam_spec(config: Mapping[str, Any], checkpoint: Checkpoint) -> SamSpec:
    """The first stage's sizes. The last width is the tensor's: DeepSeek-OCR-2's config still has the old one."""
    vision = required(config, "vision_config")
    sam = required(required(vision, "width"), "sam_vit_b")
    layers, global_layers = size(sam, "layers"), tuple(required(sam, "global_attn_indexes"))
    windowed = next((i for i in range(layers) if i not in global_layers), None)
    window = 14
    if windowed is not None:
        window = (checkpoint.shape(f"model.sam_model.blocks.{windowed}.attn.rel_pos_h")[0] + 1) // 2
    patch = checkpoint.shape("model.sam_model.patch_embed.proj.weight")[-1]
    first = required(sam, "downsample_channels")[0]
    return SamSpec(
        width=size(sam, "width"),
        layers=layers,
        heads=size(sam, "heads"),
        mlp_width=checkpoint.shape("model.sam_model.blocks.0.mlp.lin1.weight")[0],
        patch=patch,
        grid=size(vision, "image_size") // patch,
        window=window,
        global_layers=global_layers,
        neck=checkpoint.shape("model.sam_model.neck.0.weight")[0],
        channels=(
            size({"downsample_channels": first}, "downsample_channels"),
            checkpoint.shape("model.sam_model.net_3.weight")[0],
        ),
    )


def decoder_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoder's values: ``language_config`` laid over the top level."""
    return {**config, **{key: value for key, value in config.get("language_config", {}).items() if value is not None}}
