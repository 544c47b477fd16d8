"""What the transformers peer does otherwise for each family: load the model, show it an image, tell it positions.

Timed code calls these, so they do what the library's own pipeline does and nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

# model_type in config.json -> id of the catalogue; all others are DeepSeek-OCR.
MODEL_IDS = {"paddleocr_vl": "paddleocr-vl"}


def model_id(checkpoint: Path) -> str:
    """The catalogue's id for a checkpoint folder."""
    published = json.loads((checkpoint / "config.json").read_text())
    return MODEL_IDS.get(published.get("model_type", ""), "deepseek-ocr")


class PeerFamily(Protocol):
    """One family's model in transformers.

    vision_part : name of the vision tower in ``model.model``.
    """

    model: Any
    vision_part: str

    def view(self, side: int) -> tuple[Any, ...]:
        """What ``features`` takes, for one random view of so many pixels."""

    def page(self, image: Image.Image) -> tuple[Any, ...]:
        """What ``features`` takes, for a page as it comes."""

    def features(self, *inputs: Any) -> Any:
        """[image tokens, hidden]"""

    def places(self, start: int, tokens: int) -> Mapping[str, Any]:
        """Arguments of the decoder that say where so many tokens stand."""


def load_family(checkpoint: Path, dtype: Any) -> PeerFamily:
    """The checkpoint's model in a PyTorch type."""
    return PaddlePeer(checkpoint, dtype) if model_id(checkpoint) == "paddleocr-vl" else DeepseekPeer(checkpoint, dtype)


class DeepseekPeer:
    """See ``PeerFamily``."""

    vision_part = "vision_tower"

    def __init__(self, checkpoint: Path, dtype: Any) -> None:
        from tools.reference import load_reference

        self.model: Any = load_reference(checkpoint, dtype)
        self._dtype = dtype

    def view(self, side: int) -> tuple[Any, ...]:
        import torch

        return torch.randn(1, 3, side, side).to(self._dtype), None, (1, 1)

    def page(self, image: Image.Image) -> tuple[Any, ...]:
        from models.deepseek_ocr.images import ImageRules, make_views, normalise
        from models.settings import InferenceSettings

        config = self.model.config.vision_config
        sam, clip = config.sam_config, config.encoder_config
        rules = ImageRules(
            patch_size=sam.patch_size, downsample=4, grid=sam.image_size // sam.patch_size,
            clip_grid=clip.image_size // clip.patch_size,
        )  # fmt: skip
        views = make_views(image, InferenceSettings(), rules)
        tiles = None if views.tiles is None else self._tensor(normalise(views.tiles, rules))
        return self._tensor(normalise(views.whole, rules)), tiles, views.grid

    def features(self, *inputs: Any) -> Any:
        whole, tiles, grid = inputs
        counts = [0 if tiles is None else len(tiles)]
        found = self.model.model.get_image_features(whole, tiles, counts, [list(grid)], return_dict=True)
        return found.pooler_output[0]

    def places(self, start: int, tokens: int) -> Mapping[str, Any]:
        return {}

    def _tensor(self, array: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(array).to(self._dtype)


class PaddlePeer:
    """See ``PeerFamily``. A view is a page of its size, which the processor makes a multiple of 28 pixels."""

    vision_part = "visual"

    def __init__(self, checkpoint: Path, dtype: Any) -> None:
        from tools.paddle_reference import image_processor, load_paddle

        self.model: Any = load_paddle(checkpoint, dtype=dtype)
        self._processor, self._dtype = image_processor(checkpoint), dtype

    def view(self, side: int) -> tuple[Any, ...]:
        noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
        return self.page(Image.fromarray(noise))

    def page(self, image: Image.Image) -> tuple[Any, ...]:
        prepared = self._processor(image, return_tensors="pt")
        return prepared["pixel_values"].to(self._dtype), prepared["image_grid_thw"]

    def features(self, *inputs: Any) -> Any:
        return self.model.get_image_features(*inputs, return_dict=True).pooler_output[0]

    def places(self, start: int, tokens: int) -> Mapping[str, Any]:
        """Counted through an image too: other positions are the same work."""
        import torch

        return {"position_ids": torch.arange(start, start + tokens).expand(3, 1, -1)}
