"""DeepSeek-OCR-2 checkpoints as graphs: DeepSeek-OCR's decoder and SAM, and the encoder with queries behind it.

config.json names only the encoder's width: layers, heads and MLP are read from tensor shapes; 64 channels a head, the
rotary base and the norms' epsilon are the published code's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from models.deepseek_ocr2.images import ImageRules

from .checkpoint import Checkpoint
from .config_values import check_values, required, size
from .deepseek_ocr import DeepseekExport, sam_outliers, sam_spec
from .export_errors import ExportError
from .family import GraphPart
from .layers import Precision
from .outliers import OutlierSite
from .query_vision import QuerySpec, QueryTower, QueryTowerSpec, query_vision_graph

ENCODER = "model.qwen2_model.model.model"
_HEAD_DIM = 64
# Queries of the tiles' views and of the global view, in the order of the graph's table.
_QUERIES = ("model.qwen2_model.query_768.weight", "model.qwen2_model.query_1024.weight")

_REQUIRED_OF_PROJECTOR: Mapping[str, tuple[Any, ...]] = {"projector_type": ("linear",)}


class DeepseekOcr2Export(DeepseekExport):
    """One checkpoint of the family, understood; see ``export.family.FamilyExport``."""

    def __init__(self, checkpoint: Checkpoint, processor: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, processor)
        check_values(
            self._config.get("projector_config") or {}, _REQUIRED_OF_PROJECTOR, "config.json: projector_config"
        )
        self._vision = QueryTowerSpec(
            sam_spec(self._config, checkpoint), query_spec(self._config, checkpoint), self.decoder.hidden
        )
        if (width := self._vision.sam.channels[1]) != self._vision.encoder.width:
            raise ExportError(f"SAM gives {width} channels (net_3) and the encoder takes {self._vision.encoder.width}")

    def vision(self, precision: Precision) -> GraphPart:
        tower = QueryTower("model", self._vision, precision)
        return GraphPart(tower, partial(query_vision_graph, tower))

    @property
    def vision_outliers(self) -> list[OutlierSite]:
        """The encoder's inputs behind norms and of the last matrix; not values, whose channels several heads share."""
        sites, spec = sam_outliers(self._vision.sam), self._vision.encoder
        for i in range(spec.layers):
            at = f"{ENCODER}.layers.{i}"
            attention = tuple(f"{at}.self_attn.{n}_proj.weight" for n in "qkv")
            mlp = tuple(f"{at}.mlp.{n}_proj.weight" for n in ("gate", "up"))
            sites += [
                OutlierSite((f"{at}.input_layernorm.weight",), attention, spec.width),
                OutlierSite((f"{at}.post_attention_layernorm.weight",), mlp, spec.width),
                OutlierSite((mlp[1],), (f"{at}.mlp.down_proj.weight",), spec.mlp_width),
            ]
        return sites

    @property
    def image_rules(self) -> ImageRules:
        """The image settings: the views that have queries."""
        sam = self._vision.sam
        tile, whole = (round(rows**0.5) * 4 * sam.patch for _, rows in self._vision.encoder.queries)
        given = {"max_tiles": "max_tiles", "mean": "image_mean", "std": "image_std"}
        rules = {name: self._processor[key] for name, key in given.items() if self._processor.get(key) is not None}
        return ImageRules(
            patch_size=sam.patch,
            downsample=4,
            grid=sam.grid,
            window=sam.window,
            base_size=whole,
            image_size=tile,
            **rules,
        )


def query_spec(config: Mapping[str, Any], checkpoint: Checkpoint) -> QuerySpec:
    """The encoder's sizes, from tensor shapes.

    Raises
    ------
    ExportError
        when config.json and the shapes disagree, or there is no square of queries.
    """
    width = checkpoint.shape(f"{ENCODER}.norm.weight")[0]
    dim = size(required(required(required(config, "vision_config"), "width"), "qwen2-0-5b"), "dim")
    if dim != width:
        raise ExportError(f"config.json: qwen2-0-5b: dim is {dim}, and the encoder's tensors are {width} wide")
    of_layers = [name for name in checkpoint.tensors if name.startswith(f"{ENCODER}.layers.")]
    heads, kv_heads = (checkpoint.shape(f"{ENCODER}.layers.0.self_attn.{n}_proj.weight")[0] for n in "qk")
    if heads % _HEAD_DIM or kv_heads % _HEAD_DIM or heads % kv_heads:
        raise ExportError(
            f"the encoder has {heads} channels of queries and {kv_heads} of keys; expected heads of {_HEAD_DIM}"
        )
    queries = tuple((name, checkpoint.shape(name)[0]) for name in _QUERIES)
    for name, rows in queries:
        if round(rows**0.5) ** 2 != rows:
            raise ExportError(f"{name} has {rows} rows; expected a square number")
    return QuerySpec(
        width=width,
        layers=len({name.removeprefix(f"{ENCODER}.layers.").split(".")[0] for name in of_layers}),
        heads=heads // _HEAD_DIM,
        kv_heads=kv_heads // _HEAD_DIM,
        head_dim=_HEAD_DIM,
        mlp_width=checkpoint.shape(f"{ENCODER}.layers.0.mlp.gate_proj.weight")[0],
        queries=queries,
    )
