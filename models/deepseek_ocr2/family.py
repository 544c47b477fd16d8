"""The rules of DeepSeek-OCR-2, bound to one exported model: DeepSeek-OCR's but for how images are cut and laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from models.deepseek_ocr.family import DeepseekPrompts, passes_of
from models.deepseek_ocr.images import normalise
from models.family import Feeds, PreparedImage
from models.family_settings import FamilySettings
from models.manifest import Manifest
from models.pixels import noise

from .images import ImageRules, ImageSettings, lay_out, make_views, token_count, view_inputs


class DeepseekOcr2(DeepseekPrompts):
    """See ``models.family.Family``."""

    settings: ClassVar[type[FamilySettings]] = ImageSettings

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.rules = ImageRules.model_validate(manifest.image)

    def prepare_image(
        self, image: Image.Image, settings: Mapping[str, Any], prompt: str = "", images: int = 1
    ) -> PreparedImage:
        """Tile after tile and the global view, in the passes of ``passes_of``."""
        views = make_views(image, ImageSettings.of(settings), self.rules, self.most_tokens)

        def assemble(outputs: Sequence[Feeds]) -> np.ndarray:
            *tiles, whole = outputs
            return lay_out(whole["features"][0], [tile["features"][0] for tile in tiles], whole["view_separator"])

        return PreparedImage(passes_of(views, self._feeds), token_count(views.grid, self.rules), assemble)

    def smallest_image(self, settings: Mapping[str, Any] | None = None) -> PreparedImage:
        """Without settings one tile alone, whose view is the smaller one; with them an image with tiles."""
        side = self.rules.image_size
        if settings is not None:
            return self.prepare_image(noise(side + 1), settings)
        tile = np.asarray(noise(side))[None]
        count = self.rules.queries(side)[1]
        return PreparedImage([partial(self._feeds, tile)], count, lambda outputs: outputs[0]["features"][0])

    def _feeds(self, view: np.ndarray) -> Feeds:
        return {"pixel_values": normalise(view, self.rules), **view_inputs(view.shape[1], self.rules)}
